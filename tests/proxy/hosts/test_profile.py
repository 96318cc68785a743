"""Host profiles: learned, written, read back."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.arm.sysreg import MIDR_EL1, Kind, describe, parse_register
from proxy.errors import ConfigError, RefusedError
from proxy.hosts.learning import learn_profile
from proxy.hosts.profile import HostProfile
from proxy.hosts.profile_file import load_profile
from proxy.hosts.profile_text import write_profile
from tests.proxy.helpers import NAMES, PSCI_VERSION, R0, R3, REVIDR_EL1, midr_only, profile, registers

if TYPE_CHECKING:
    from pathlib import Path

SCTLR_EL1 = parse_register("SCTLR_EL1")


@pytest.mark.parametrize("name", NAMES)
def test_a_learned_profile_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_text(write_profile(profile(name)), encoding="utf-8")
    assert load_profile(path) == profile(name)


@given(
    values=st.dictionaries(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1)),
    others=st.none() | st.frozensets(st.integers(0, (1 << 64) - 1), max_size=5),
    description=st.text(st.characters(categories=("L", "N", "P", "S", "Zs"))),
)
def test_any_profile_comes_back_as_it_was(
    values: dict[int, int], others: frozenset[int] | None, description: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ids that nobody knows, in every block, too."""
    printable = "".join(char if char.isprintable() else "?" for char in description)
    made = HostProfile(printable, values, None if others is None else others - values.keys())
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(write_profile(made), encoding="utf-8")
    assert load_profile(path) == made


def test_a_description_cannot_break_the_file() -> None:
    text = write_profile(HostProfile('a"\nschema_version = 3\\\x00\x7f', {}, None))
    assert tomllib.loads(text)["schema_version"] == 2


def test_what_is_learned() -> None:
    learned = profile("kvm-trixie-a57r0-smp2")
    assert learned.midr == R0
    assert profile("kvm-trixie-a57r3").midr == R3
    assert learned.others is not None
    assert len(learned.values) + len(learned.others) == 258
    kinds = {describe(register).kind for register in learned.values}
    assert kinds == {Kind.IDENTIFICATION, Kind.CACHE_ID, Kind.FIRMWARE, Kind.FEATURE_BITMAP}
    assert not kinds & {describe(register).kind for register in learned.others}


def test_hosts_that_differ_in_the_processor_revision_only() -> None:
    one, other = profile("kvm-trixie-a57r0"), profile("kvm-trixie-a57r3")
    assert [id_ for id_ in one.values if one.values[id_] != other.values.get(id_)] == [MIDR_EL1]


def test_a_profile_reads_well() -> None:
    text = write_profile(profile("kvm-trixie-a57r3"))
    assert 'MIDR_EL1 = "0x411fd073"' in text
    assert '"CCSIDR_EL1[0]" = ' in text
    assert tomllib.loads(text)["firmware"]["KVM_REG_ARM_PSCI_VERSION"].startswith("0x1000")


def test_unlike_vcpus_are_refused() -> None:
    with pytest.raises(RefusedError, match="vCPU 1: MIDR_EL1 differs"):
        learn_profile([registers({MIDR_EL1: R0}), registers({MIDR_EL1: R3}, 1)], "")
    with pytest.raises(RefusedError, match="vCPU 1: REVIDR_EL1 differs"):
        learn_profile([registers({MIDR_EL1: R0, REVIDR_EL1: 0}), registers({MIDR_EL1: R0}, 1)], "")


def test_vcpus_may_differ_in_what_belongs_to_the_guest() -> None:
    vcpus = [registers({MIDR_EL1: R0, SCTLR_EL1: 1}), registers({MIDR_EL1: R0, SCTLR_EL1: 2}, 1)]
    assert learn_profile(vcpus, "d") == HostProfile("d", {MIDR_EL1: R0}, frozenset({SCTLR_EL1}))


def test_no_arm_vcpu_is_refused() -> None:
    with pytest.raises(RefusedError, match="no arm64 vCPU"):
        learn_profile([], "")


def test_what_a_host_lacks() -> None:
    complete = HostProfile("", {MIDR_EL1: R0}, frozenset({SCTLR_EL1}))
    assert not complete.lacks(MIDR_EL1)
    assert not complete.lacks(SCTLR_EL1)
    assert complete.lacks(REVIDR_EL1)
    assert not midr_only().lacks(REVIDR_EL1)


def test_a_profile_without_a_processor_id() -> None:
    assert HostProfile("", {REVIDR_EL1: 0}).midr is None


def test_a_handwritten_profile(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_text(
        'schema_version = 1\nalso_present = ["sctlr_el1"]\n'
        '[registers]\nmidr_el1 = "0x411FD073"\n"0x603000000013c006" = "0"\n'
        '[firmware]\nKVM_REG_ARM_PSCI_VERSION = "65537"\n',
        encoding="utf-8",
    )
    assert load_profile(path) == HostProfile(
        "", {MIDR_EL1: R3, REVIDR_EL1: 0, PSCI_VERSION: 65537}, frozenset({SCTLR_EL1}), variants=None
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "schema_version"),
        ("schema_version = 1", "registers"),
        ("schema_version = 3\n[registers]", "schema_version"),
        ("schema_version = '1'\n[registers]", "schema_version"),
        ("schema_version = 1\nregister = 1\n[registers]", "register"),
        ("schema_version = 1\nregisters = []", "registers"),
        ("schema_version = 1\n[registers]\nMIDR_EL1 = 0x411fd070", "registers"),
        ("schema_version = 1\n[registers]\nMIDR_EL = '1'", "registers.MIDR_EL: unknown register"),
        ("schema_version = 1\n[registers]\nMIDR_EL1 = 'x'", "registers.MIDR_EL1: 'x'"),
        ("schema_version = 1\n[registers]\nMIDR_EL1 = '0x10000000000000000'", "registers.MIDR_EL1"),
        ("schema_version = 1\n[registers]\nMIDR_EL1 = '-1'", "registers.MIDR_EL1"),
        ("schema_version = 1\n[registers]\nMIDR_EL1 = '1'\nmidr_el1 = '2'", "registers.midr_el1: the register is"),
        ("schema_version = 1\n[registers]\n[firmware]\nMIDR_EL = '1'", "firmware.MIDR_EL: unknown register"),
        ("schema_version = 1\nalso_present = ['SCTLX']\n[registers]", "also_present: unknown register 'SCTLX'"),
        ("schema_version = 1\n[registers\n", "line 2"),
    ],
)
def test_a_broken_profile_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "host.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}:")
    assert says in str(caught.value)
