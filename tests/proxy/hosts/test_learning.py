"""Learning profiles: several streams joined, and the rules of a kernel that the operator names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1, parse_register
from formats.arm.vcpu_features import VcpuFeature
from proxy.errors import ConfigError, RefusedError
from proxy.hosts.host_registers import HostRegisters
from proxy.hosts.learning import join_profiles, with_kernel
from proxy.hosts.profile_file import load_profile
from proxy.hosts.profile_text import write_profile
from proxy.judging.judge import Judge
from proxy.judging.verdict import Action
from proxy.policy.policy import Policy
from tests.proxy.helpers import R0, profile
from tests.proxy.hosts.test_variants import BASE, NEITHER, NO_PMU, NO_SVE

if TYPE_CHECKING:
    from pathlib import Path

PMU, SVE = VcpuFeature.PMU_V3, VcpuFeature.SVE
LEARNED = [
    replace(one, taken=None, all_kinds=False, kernel=None, vcpu_features=None, sve_vector_lengths=None)
    for one in (NO_PMU, BASE, NEITHER, NO_SVE)
]


def test_streams_of_several_kinds_are_joined(tmp_path: Path) -> None:
    joined = join_profiles(LEARNED)
    path = tmp_path / "host.toml"
    path.write_text(write_profile(joined))
    assert load_profile(path) == joined
    assert joined.kinds == [{PMU, SVE}, {SVE}, {PMU}, set()]
    for one in LEARNED:
        found = joined.for_kind(one.kind)
        assert found is not None
        assert (found.values, found.others) == (one.values, one.others)
    assert joined.for_kind(frozenset({PMU, SVE, VcpuFeature.MTE})) is None


def test_the_same_kind_twice_is_one() -> None:
    one = profile("kvm-trixie-a57r3")
    assert join_profiles([one, one]) == one


def test_streams_of_unlike_hosts_are_not_joined() -> None:
    other = replace(BASE, values=BASE.values | {MIDR_EL1: R0})
    with pytest.raises(RefusedError, match="MIDR_EL1 differs for vCPUs with PMU_V3, SVE, so they were recorded on unl"):
        join_profiles([BASE, other])


@pytest.mark.parametrize("kernel", ["Linux 6.12", "6.12", "Linux 6.12.117+deb13-arm64"])
def test_the_rules_of_a_kernel_fill_what_a_stream_cannot_tell(kernel: str) -> None:
    """Of one processor, from Linux 6.1 to 6.12: caches and DebugVer differ, which 6.12 takes."""
    newer = profile("kvm-trixie-n1")
    guest = HostRegisters(profile("kvm-bookworm-n1"))
    assert Action.REFUSE in [verdict.action for verdict in Judge(Policy(), newer).judge(guest)]
    told = with_kernel(newer, kernel)
    assert {verdict.action for verdict in Judge(Policy(), told).judge(guest)} == {Action.ACCEPT}
    assert told.writable is not None
    assert told.writable.keys() <= told.values.keys()
    assert told.kernel is not None
    assert told.kernel.startswith("Linux 6.12")


def test_rules_that_are_not_known_are_not_guessed() -> None:
    for kernel in ("Linux 6.8", "6", "six", ""):
        with pytest.raises(ConfigError, match=r"the rules of Linux 5\.10, 6\.1, 6\.12, 7\.2 are known"):
            with_kernel(BASE, kernel)


def test_what_5_10_and_6_1_let_be_lowered() -> None:
    pfr0 = parse_register("ID_AA64PFR0_EL1")
    for kernel, mask in (("5.10", 0xF << 56), ("6.1", 0xFF << 56)):
        assert (with_kernel(BASE, kernel).writable or {}).get(pfr0) == mask
