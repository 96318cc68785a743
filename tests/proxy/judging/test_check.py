"""What a check says beside the verdicts: what the guest sees, what it loses, and the errata it meets."""

from __future__ import annotations

from dataclasses import replace

from formats.arm.sysreg import MIDR_EL1, parse_register
from proxy.hosts.host_registers import HostRegisters
from proxy.hosts.profile import HostProfile
from proxy.judging.check import check
from proxy.judging.explain import compare_errata, host_differences, lost_features, what_the_guest_sees
from proxy.judging.verdict import Action, Verdict
from tests.proxy.helpers import R0, R3, judge, profile, registers

A72 = 0x410FD083
DFR0 = parse_register("ID_AA64DFR0_EL1")
MVFR0 = parse_register("MVFR0_EL1")
CTR = parse_register("CTR_EL0")


def verdict(register: int, old: int, new: int, action: Action = Action.SWAP) -> Verdict:
    return Verdict(0, register, action, old, new, "rule")


def test_the_guest_reads_the_processors_own_id() -> None:
    seen = what_the_guest_sees(verdict(MIDR_EL1, R0, R3))
    assert seen is not None
    assert seen.startswith("the swap is not what the guest sees")
    for word in ("come online", "kexec", "JITs", "/sys/devices/system/cpu/*/regs"):
        assert word in seen


def test_the_guest_reads_what_the_stream_said_of_the_rest() -> None:
    assert what_the_guest_sees(verdict(DFR0, 0x10305408, 0x10305406)) == "the guest will read DebugVer 6 instead of 8"


def test_only_a_swap_is_seen() -> None:
    for action in (Action.ACCEPT, Action.DROP, Action.REFUSE):
        assert what_the_guest_sees(verdict(DFR0, 8, 6, action)) is None


def test_less_is_lost_and_more_is_not() -> None:
    assert lost_features([verdict(DFR0, 8, 6)]) == ["ID_AA64DFR0_EL1.DebugVer 8 -> 6"]
    assert lost_features([verdict(DFR0, 6, 8)]) == []
    assert lost_features([verdict(DFR0, 8, 6, Action.REFUSE)]) == ["ID_AA64DFR0_EL1.DebugVer 8 -> 6"]
    # What is accepted stays as it was told.
    assert lost_features([verdict(DFR0, 8, 6, Action.ACCEPT)]) == []


def test_two_vcpus_lose_a_feature_once() -> None:
    assert len(lost_features([verdict(DFR0, 8, 6), verdict(DFR0, 8, 6)._replace(vcpu=1)])) == 1


def test_errata_both_ways() -> None:
    errata = compare_errata(R3, A72)
    assert "Arm 1319367" in map(str, errata.new)
    assert "Arm 1319537" in map(str, errata.gone)
    assert errata.unguarded == ()
    back = compare_errata(A72, R3)
    assert (set(back.new), set(back.gone)) == (set(errata.gone), set(errata.new))


def test_an_older_stepping_brings_an_erratum_that_no_guest_is_ready_for() -> None:
    assert "Arm 832075" in map(str, compare_errata(R3, R0).unguarded)
    assert compare_errata(R3, R3) == compare_errata(None, R3) == compare_errata(R3, None)


def test_hosts_differ_in_features_and_frequency() -> None:
    here = HostProfile("", {}, vcpu_features=("PMU_V3", "SVE"), timer_frequency=25_000_000)
    there = HostProfile("", {}, vcpu_features=("PMU_V3", "EL1_32BIT"), timer_frequency=1_000_000_000)
    lacks, has, timer = host_differences(here, there)
    assert lacks.endswith("lack: SVE")
    assert has.endswith("have: EL1_32BIT")
    assert "DANGER" in timer
    assert "25000000 Hz on the source and 1000000000 Hz" in timer
    assert host_differences(here, here) == []
    wide, narrow = (replace(here, sve_vector_lengths=lengths) for lengths in ((16, 32, 64), (16, 32)))
    assert "no SVE vectors of 64 bytes" in host_differences(wide, narrow)[0]
    assert host_differences(narrow, wide) == []
    assert host_differences(here, HostProfile("", {})) == []


def test_every_register_is_the_same_or_has_a_verdict() -> None:
    newer, older = profile("kvm-trixie-n1"), profile("kvm-bookworm-n1")
    answer = check(judge(host=older), [HostRegisters(newer)])
    judged = {one.register for one in answer.verdicts}
    assert judged.isdisjoint(answer.same)
    assert judged | set(answer.same) >= set(newer.values)
    assert not answer.goes
    assert not answer.direct
    assert answer.options == [
        "--allow-register CCSIDR_EL1[0],CCSIDR_EL1[1],CCSIDR_EL1[2],ID_AA64DFR0_EL1,CLIDR_EL1",
    ]
    assert answer.registers(Action.DROP)[-1] == parse_register("CNTP_CVAL_EL0")


def test_what_one_vcpu_has_otherwise_is_not_called_the_same() -> None:
    host = HostProfile("", {CTR: 2, MVFR0: 1, MIDR_EL1: R3}, frozenset())
    values = {CTR: 2, MVFR0: 1, MIDR_EL1: R3}
    answer = check(judge(host=host), [registers(values), registers(values | {CTR: 7}, 1)])
    assert answer.same == tuple(sorted((MVFR0, MIDR_EL1)))
    assert answer.options == ["--allow-register CTR_EL0"]
