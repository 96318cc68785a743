"""Profiles that know several kinds of vCPU: what is other for each, in the file and when it is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1, parse_register
from formats.arm.vcpu_features import VcpuFeature
from proxy.errors import ConfigError
from proxy.hosts.profile import HostProfile, variant_of
from proxy.hosts.profile_file import load_profile
from proxy.hosts.profile_text import write_profile
from proxy.hosts.taken import parse_taken
from tests.proxy.helpers import R3

if TYPE_CHECKING:
    from pathlib import Path

PMU, SVE = VcpuFeature.PMU_V3, VcpuFeature.SVE
PFR0, ZFR0 = parse_register("ID_AA64PFR0_EL1"), parse_register("ID_AA64ZFR0_EL1")
DFR0 = parse_register("ID_AA64DFR0_EL1")
PMCR, ZCR, SCTLR = map(parse_register, ("PMCR_EL0", "ZCR_EL1", "SCTLR_EL1"))
TAKEN = {PFR0: (parse_taken(PFR0, "CSV3 0"),), DFR0: (parse_taken(DFR0, "PMUVer 0-4"),)}
BASE = HostProfile(
    description="a host with SVE",
    values={MIDR_EL1: R3, PFR0: 1 << 60 | 1 << 32, ZFR0: 1, DFR0: 5 << 8},
    others=frozenset({SCTLR, PMCR, ZCR}),
    kernel="Linux 6.12.0",
    qemu="10.0.13",
    vcpu_features=("PMU_V3", "PSCI_0_2", "SVE"),
    sve_vector_lengths=(16, 32),
    taken=TAKEN,
    all_kinds=True,
)
NO_SVE = replace(
    BASE,
    values=BASE.values | {PFR0: 1 << 60, ZFR0: 0},
    others=frozenset({SCTLR, PMCR}),
    vcpu_features=("PMU_V3", "PSCI_0_2"),
    sve_vector_lengths=(),
    taken=TAKEN | {PFR0: (parse_taken(PFR0, "CSV3 0"), parse_taken(PFR0, "SVE 1"))},
    all_kinds=False,
)
NEITHER = replace(
    NO_SVE,
    values=NO_SVE.values | {DFR0: 0},
    others=frozenset({SCTLR}),
    vcpu_features=("PSCI_0_2",),
    taken={PFR0: (parse_taken(PFR0, "CSV3 0"), parse_taken(PFR0, "SVE 1"))},
)
NO_PMU = replace(
    BASE,
    values=BASE.values | {DFR0: 0},
    others=frozenset({SCTLR, ZCR}),
    vcpu_features=("PSCI_0_2", "SVE"),
    taken={PFR0: TAKEN[PFR0]},
    all_kinds=False,
)
WHOLE = replace(BASE, variants=tuple(variant_of(BASE, one) for one in (NO_SVE, NO_PMU, NEITHER)))


def stored(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_each_kind_finds_its_own(tmp_path: Path) -> None:
    loaded = load_profile(stored(tmp_path / "host.toml", write_profile(WHOLE)))
    assert loaded == WHOLE
    assert loaded.kinds == [{PMU, SVE}, {PMU}, {SVE}, set()]
    assert loaded.for_kind(frozenset({PMU, SVE})) == loaded
    assert loaded.for_kind(frozenset({PMU})) == NO_SVE
    assert loaded.for_kind(frozenset({SVE})) == NO_PMU
    assert loaded.for_kind(frozenset()) == NEITHER


def test_what_the_host_has_not_is_left_aside() -> None:
    mte = VcpuFeature.MTE
    assert WHOLE.for_kind(frozenset({PMU, mte})) == NO_SVE
    assert WHOLE.for_kind(frozenset({PMU, SVE, mte})) == WHOLE


def test_a_profile_of_one_kind_knows_no_other() -> None:
    learned = replace(BASE, all_kinds=False, taken=None)
    assert learned.for_kind(frozenset({PMU, SVE})) == learned
    assert learned.for_kind(frozenset({PMU})) is None
    assert learned.for_kind(frozenset({PMU, SVE, VcpuFeature.MTE})) is None


def test_a_profile_of_version_1_is_asked_as_before_by_guests_with_more(tmp_path: Path) -> None:
    text = 'schema_version = 1\nalso_present = ["PMCR_EL0"]\n[registers]\nMIDR_EL1 = "0x411fd073"\n'
    loaded = load_profile(stored(tmp_path / "host.toml", text))
    assert loaded.for_kind(frozenset({PMU})) == loaded
    assert loaded.for_kind(frozenset({PMU, SVE})) == loaded
    assert loaded.for_kind(frozenset()) is None
    assert write_profile(loaded).count("schema_version = 1\n") == 1


def test_a_profile_of_a_processor_alone_serves_every_kind() -> None:
    alone = HostProfile("", {MIDR_EL1: R3})
    assert alone.for_kind(frozenset({PMU})) == alone


def test_registers_of_a_feature_are_named_once() -> None:
    text = write_profile(WHOLE)
    assert text.count("ZCR_EL1") == 2  # in also_present, and under [only_with]
    assert 'SVE = ["ZCR_EL1"]' in text
    assert "absent" not in text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('SVE = ["ZCR_EL1"]', "SVE = []", r":\d+: variants\[0\].vcpu_features: its registers are those of vCPUs with"),
        ('SVE = ["ZCR_EL1"]', 'SVE = ["ZCR_EL9"]', r":\d+: only_with.SVE: unknown register 'ZCR_EL9'"),
        ('vcpu_features = ["PSCI_0_2"]', 'vcpu_features = ["PSCI"]', r"variants\[2\].vcpu_features: there is no vCPU"),
        ('vcpu_features = ["PSCI_0_2"]', "", r"variants\[2\].vcpu_features: it is missing"),
        ('ID_AA64ZFR0_EL1 = "0x0"', "ID_AA64ZFR0_EL1 = 0", r"variants\[0\].registers.ID_AA64ZFR0_EL1: it has to be"),
        ('ID_AA64ZFR0_EL1 = "0x0"', 'ID_AA64ZFR0_EL1 = "zero"', r"variants\[0\].registers.ID_AA64ZFR0_EL1: 'zero' is"),
        ('"SVE 1"]', '"SVE x"]', r"variants\[0\].taken.ID_AA64PFR0_EL1: 'x' is neither"),
        ('["PSCI_0_2", "SVE"]', '["PMU_V3", "PSCI_0_2"]', r"variants\[1\].vcpu_features: vCPUs with"),
        ("kinds = 4", "kinds = 5", r":\d+: kinds: 5 are promised, and 4 there"),
        ("changed = 2", "changed = 3", r":\d+: variants\[0\].changed: 3 registers are promised, and 2 there"),
        ('[variants.taken]\nID_AA64PFR0_EL1 = ["CSV3 0", "SVE 1"]', "[variants.taken", "line"),
        ("schema_version = 2", "schema_version = 1", r":\d+: qemu: a profile of schema_version 1 has no such key"),
    ],
)
def test_a_wrong_or_cut_variant_names_key_and_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = write_profile(WHOLE)
    assert old in text
    path = stored(tmp_path / "host.toml", text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=says) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}:")


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    text = write_profile(WHOLE)
    path = tmp_path / "host.toml"
    for end in range(text.index("kinds = 4") + len("kinds = 4"), len(text) - 1):
        with pytest.raises(ConfigError):
            load_profile(stored(path, text[:end]))
