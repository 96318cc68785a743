"""The judge: one verdict for each register that is changed or refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1, describe, parse_register
from proxy.hosts.host_registers import HostRegisters
from proxy.hosts.profile import HostProfile
from proxy.judging.judge import Judge
from proxy.judging.profile_acceptance import NO_SUCH_REGISTER
from proxy.judging.trial import Trial
from proxy.judging.verdict import Action
from proxy.policy.policy import Mode, Policy
from tests.proxy.helpers import PSCI_VERSION, R0, R3, REVIDR_EL1, judge, midr_only, pairing, registers
from tests.proxy.hosts.test_variants import BASE, NEITHER, NO_PMU, NO_SVE, PFR0, WHOLE, ZFR0

if TYPE_CHECKING:
    from collections.abc import Iterable

CTR_EL0 = parse_register("CTR_EL0")
SCTLR_EL1 = parse_register("SCTLR_EL1")
CCSIDR0 = parse_register("CCSIDR_EL1[0]")
STD_BMAP = parse_register("KVM_REG_ARM_STD_BMAP")

HOST = HostProfile(
    "made up",
    {MIDR_EL1: R3, REVIDR_EL1: 1, CTR_EL0: 2, CCSIDR0: 3, PSCI_VERSION: 0x10001, STD_BMAP: 1},
    frozenset({SCTLR_EL1}),
)
SAME = {**HOST.values, SCTLR_EL1: 0x30D00800}


def verdicts(judge_: Judge, values: dict[int, int], vcpu: int = 0) -> list[tuple[int, Action, int | None, int | None]]:
    found = list(judge_.judge(registers(values, vcpu)))
    assert all(verdict.vcpu == vcpu for verdict in found)
    assert all(verdict.name == describe(verdict.register).name for verdict in found)
    return [(verdict.register, verdict.action, verdict.old, verdict.new) for verdict in found]


@pytest.mark.parametrize("mode", Mode)
def test_what_fits_has_no_verdict(mode: Mode) -> None:
    assert verdicts(judge(host=HOST, mode=mode), SAME) == []


@pytest.mark.parametrize("mode", Mode)
def test_a_listed_processor_is_swapped(mode: Mode) -> None:
    found = verdicts(judge(R0, host=HOST, mode=mode), SAME | {MIDR_EL1: R0}, vcpu=3)
    assert found == [(MIDR_EL1, Action.SWAP, R0, R3)]


@pytest.mark.parametrize("mode", Mode)
def test_an_unlisted_processor_is_refused_in_every_mode(mode: Mode) -> None:
    found = verdicts(judge(0x410FD034, host=HOST, mode=mode), SAME | {MIDR_EL1: R0})
    assert found == [(MIDR_EL1, Action.REFUSE, R0, R3)]


def test_the_refusal_of_a_processor_says_what_would_let_it_pass() -> None:
    (verdict,) = judge(0x410FD034, None, host=HOST).judge(registers(SAME | {MIDR_EL1: R0}))
    assert "processor id 0x411fd070 (Arm Cortex-A57 r1p0)" in verdict.rule
    assert "the whitelist has Arm Cortex-A53 r0p4, none" in verdict.rule
    assert "--allow-midr 0x411fd070" in verdict.advice


def test_the_destinations_own_processor_needs_no_whitelist() -> None:
    assert verdicts(judge(host=midr_only()), SAME) == []


def test_a_stream_without_a_processor_id_needs_the_word_none() -> None:
    tcg = {id_: value for id_, value in SAME.items() if id_ != MIDR_EL1}
    assert verdicts(judge(R0, host=HOST), tcg) == [(MIDR_EL1, Action.REFUSE, None, R3)]
    (verdict,) = judge(R0, host=HOST).judge(registers(tcg))
    assert "--allow-midr none" in verdict.advice
    assert verdicts(judge(None, host=HOST), tcg) == []


def test_none_does_not_stand_for_every_processor() -> None:
    assert verdicts(judge(None, host=HOST), SAME | {MIDR_EL1: R0}) == [(MIDR_EL1, Action.REFUSE, R0, R3)]


def test_a_destination_without_a_processor_id_takes_streams_without_one() -> None:
    tcg = {id_: value for id_, value in SAME.items() if id_ != MIDR_EL1}
    host = replace(HOST, values={id_: value for id_, value in HOST.values.items() if id_ != MIDR_EL1})
    assert verdicts(judge(host=host), tcg) == []
    assert (MIDR_EL1, Action.REFUSE) in [found[:2] for found in verdicts(judge(host=host), SAME)]


def test_an_unlisted_difference_is_refused() -> None:
    found = verdicts(judge(R0, host=HOST), SAME | {MIDR_EL1: R0, CTR_EL0: 7})
    assert found == [(MIDR_EL1, Action.SWAP, R0, R3), (CTR_EL0, Action.REFUSE, 7, 2)]
    (verdict,) = judge(host=HOST).judge(registers(SAME | {CTR_EL0: 7}))
    assert "0x7 on the source and 0x2 on the destination" in verdict.rule
    assert "--allow-register CTR_EL0" in verdict.advice


def test_a_listed_difference_is_swapped_alone() -> None:
    swap = {CTR_EL0: "policy.toml: registers.swap"}
    changed = SAME | {CTR_EL0: 7, CCSIDR0: 9}
    assert verdicts(judge(host=HOST, swap=swap), changed) == [
        (CCSIDR0, Action.REFUSE, 9, 3),
        (CTR_EL0, Action.SWAP, 7, 2),
    ]
    *_, verdict = judge(host=HOST, swap=swap).judge(registers(changed))
    assert verdict.rule == "policy.toml: registers.swap"


def test_a_listed_processor_is_not_swapped_when_its_register_is_not_listed() -> None:
    found = verdicts(judge(R0, host=HOST, swap={}), SAME | {MIDR_EL1: R0})
    assert found == [(MIDR_EL1, Action.REFUSE, R0, R3)]


def test_the_rule_says_which_entry_let_the_processor_come() -> None:
    policy = Policy((pairing(R0, "policy.toml: whitelist"),))
    (verdict,) = Judge(policy, HOST).judge(registers(SAME | {MIDR_EL1: R0}))
    assert verdict.rule == "policy.toml: whitelist 0x411fd070"


def test_blind_swaps_every_invariant_register_that_differs() -> None:
    changed = SAME | {MIDR_EL1: R0, CTR_EL0: 7, CCSIDR0: 9, REVIDR_EL1: 0}
    found = verdicts(judge(R0, host=HOST, mode=Mode.BLIND, swap={}), changed)
    assert [(register, action) for register, action, _, _ in found] == [
        (CCSIDR0, Action.SWAP),
        (MIDR_EL1, Action.SWAP),
        (REVIDR_EL1, Action.SWAP),
        (CTR_EL0, Action.SWAP),
    ]


def test_observing_judges_as_a_repair_would() -> None:
    changed = SAME | {MIDR_EL1: R0, CTR_EL0: 7}
    assert verdicts(judge(R0, host=HOST, mode=Mode.OBSERVE), changed) == verdicts(judge(R0, host=HOST), changed)


@pytest.mark.parametrize("mode", Mode)
def test_firmware_and_guest_state_are_never_swapped(mode: Mode) -> None:
    """Not even by a policy that lists them, as a policy file cannot."""
    swap = dict.fromkeys((PSCI_VERSION, STD_BMAP, SCTLR_EL1), "listed")
    host = replace(HOST, values=HOST.values | {SCTLR_EL1: 0})
    changed = SAME | {PSCI_VERSION: 2, STD_BMAP: 0}
    assert verdicts(judge(host=host, mode=mode, swap=swap), changed) == [
        (SCTLR_EL1, Action.ACCEPT, 0x30D00800, 0),
        (PSCI_VERSION, Action.ACCEPT, 2, 0x10001),
        (STD_BMAP, Action.ACCEPT, 0, 1),
    ]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("register", [0x603000000013FFFF, parse_register("ACTLR_EL1")])
def test_a_register_that_the_destination_lacks_is_refused(mode: Mode, register: int) -> None:
    found = verdicts(judge(host=HOST, mode=mode), SAME | {register: 0})
    assert found == [(register, Action.REFUSE, 0, None)]


def test_a_partial_profile_lacks_nothing_and_knows_one_value() -> None:
    changed = SAME | {MIDR_EL1: R0, CTR_EL0: 7, 0x603000000013FFFF: 1}
    assert verdicts(judge(R0, host=midr_only()), changed) == [(MIDR_EL1, Action.SWAP, R0, R3)]


def test_registers_that_only_the_destination_has_do_not_matter() -> None:
    assert verdicts(judge(host=HOST), {MIDR_EL1: R3, SCTLR_EL1: 1}) == []


def test_without_a_destination_there_is_nothing_to_judge() -> None:
    assert list(Judge(Policy(mode=Mode.OBSERVE), None).judge(registers(SAME))) == []


# --- what the destination takes, and what it lacks

ACTLR_EL1 = parse_register("ACTLR_EL1")
CNTPCT_EL0, CNTP_CTL_EL0 = parse_register("CNTPCT_EL0"), parse_register("CNTP_CTL_EL0")
WORKAROUND_1 = parse_register("KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1")
FREE = replace(HOST, writable={CTR_EL0: (1 << 64) - 1})
"""A host that takes a CTR_EL0 that is lower than its own."""


@pytest.mark.parametrize("mode", [Mode.REPAIR, Mode.OBSERVE])
def test_what_the_destination_takes_is_left_as_it_is(mode: Mode) -> None:
    """Though the policy would let it be swapped."""
    (verdict,) = judge(host=FREE, mode=mode, swap={CTR_EL0: "listed"}).judge(registers(SAME | {CTR_EL0: 1}))
    assert (verdict.action, verdict.old, verdict.new, verdict.why) == (Action.ACCEPT, 1, 2, "")
    (verdict,) = judge(host=FREE, mode=mode, swap={CTR_EL0: "listed"}).judge(registers(SAME | {CTR_EL0: 3}))
    assert (verdict.action, verdict.old, verdict.new, verdict.why) == (Action.SWAP, 3, 2, "IminLine 3 -> 2")


def test_blind_swaps_even_what_the_destination_takes() -> None:
    (verdict,) = judge(host=FREE, mode=Mode.BLIND).judge(registers(SAME | {CTR_EL0: 1}))
    assert (verdict.action, verdict.rule, verdict.why) == (Action.SWAP, "mode blind", "")


@pytest.mark.parametrize("mode", Mode)
def test_a_listed_register_is_dropped_where_it_is_lacking(mode: Mode) -> None:
    drop = {ACTLR_EL1: "--allow-drop", SCTLR_EL1: "--allow-drop"}
    (verdict,) = judge(host=HOST, mode=mode, drop=drop).judge(registers(SAME | {ACTLR_EL1: 7}, vcpu=2))
    assert (verdict.vcpu, verdict.register, verdict.action) == (2, ACTLR_EL1, Action.DROP)
    assert (verdict.old, verdict.new) == (7, None)
    assert (verdict.rule, verdict.why) == ("--allow-drop", "the destination has no such register")


def test_the_refusal_of_a_lacking_register_says_what_would_let_it_pass() -> None:
    (verdict,) = judge(host=HOST).judge(registers(SAME | {ACTLR_EL1: 7}))
    assert verdict.action is Action.REFUSE
    assert "--allow-drop ACTLR_EL1" in verdict.advice
    assert "registers.drop" in verdict.advice


def test_a_partial_profile_drops_nothing() -> None:
    changed = SAME | {ACTLR_EL1: 7, CNTPCT_EL0: 1, CNTP_CTL_EL0: 0}
    assert verdicts(judge(host=midr_only(), drop={ACTLR_EL1: "listed"}), changed) == []


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("register", [WORKAROUND_1, PSCI_VERSION, STD_BMAP, PSCI_VERSION + 99, STD_BMAP + 99])
def test_firmware_is_never_dropped_by_a_rule(mode: Mode, register: int) -> None:
    """Not even by a policy that lists it, as a policy file cannot."""
    host = replace(HOST, values={id_: value for id_, value in HOST.values.items() if id_ != register})
    drop = {register: "listed"}
    (verdict,) = judge(host=host, mode=mode, drop=drop).judge(registers(SAME | {register: 1}))
    assert (verdict.register, verdict.action, verdict.old, verdict.new) == (register, Action.REFUSE, 1, None)
    assert (
        verdict.rule == "what the firmware told the guest is never lowered or left out; use a destination that has it"
    )


@pytest.mark.parametrize("register", [WORKAROUND_1, STD_BMAP])
def test_firmware_that_offers_nothing_is_harmless_to_drop(register: int) -> None:
    host = replace(HOST, values={id_: value for id_, value in HOST.values.items() if id_ != register})
    assert verdicts(judge(host=host), SAME | {register: 0}) == [(register, Action.DROP, 0, None)]
    assert verdicts(judge(host=host, drop_harmless=False), SAME | {register: 0}) == [(register, Action.REFUSE, 0, None)]


@pytest.mark.parametrize("mode", Mode)
def test_a_mitigation_that_would_be_lowered_is_refused_in_words(mode: Mode) -> None:
    host = replace(HOST, values=HOST.values | {WORKAROUND_1: 0})
    swap = {WORKAROUND_1: "listed"}
    (verdict,) = judge(host=host, mode=mode, swap=swap, drop=swap).judge(registers(SAME | {WORKAROUND_1: 2}))
    assert (verdict.name, verdict.action) == ("KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1", Action.REFUSE)
    assert (verdict.old, verdict.new) == (2, 0)
    assert verdict.why == (
        "the guest would lose a mitigation: NOT_REQUIRED on the source, NOT_AVAIL on the destination"
    )
    assert "never lowered" in verdict.rule
    assert "--allow" not in verdict.rule


def test_a_mitigation_that_would_be_raised_is_accepted() -> None:
    host = replace(HOST, values=HOST.values | {WORKAROUND_1: 2})
    assert verdicts(judge(host=host), SAME | {WORKAROUND_1: 0}) == [(WORKAROUND_1, Action.ACCEPT, 0, 2)]


def test_a_processor_that_the_destination_does_not_know_as_a_register() -> None:
    """A profile of a TCG host: the whitelist lets the guest come, the list would still not load."""
    host = replace(HOST, values={id_: value for id_, value in HOST.values.items() if id_ != MIDR_EL1})
    assert verdicts(judge(R3, host=host), SAME) == [(MIDR_EL1, Action.REFUSE, R3, None)]
    assert verdicts(judge(R3, host=host, drop={MIDR_EL1: "listed"}), SAME) == [(MIDR_EL1, Action.DROP, R3, None)]


# --- asking the destination's own kernel


@dataclass
class Kernel(Trial):
    """A KVM that has registers, takes some values, and remembers what it was asked.

    Attributes:
        takes: What it takes of each register it has; None for anything.
        together: Registers that it refuses unless another has a value: of the one, the other and the value.
    """

    takes: dict[int, set[int] | None]
    together: dict[int, tuple[int, int]] = field(default_factory=dict)
    asked: list[dict[int, int | None]] = field(default_factory=list)

    def refused(
        self,
        given: Iterable[tuple[int, int | None]],
        _host: HostProfile,
        _repaired: frozenset[tuple[int, int | None]],
        /,
    ) -> dict[int, str]:
        values = dict(given)
        assert list(values) == sorted(values)
        self.asked.append(values)
        found = {}
        for register, value in values.items():
            if register not in self.takes:
                found[register] = NO_SUCH_REGISTER
                continue
            taken = self.takes[register]
            other, wanted = self.together.get(register, (register, value))
            if (taken is not None and value is not None and value not in taken) or values.get(other) != wanted:
                found[register] = "this host's KVM answers EINVAL"
        return found


def kernel(**takes: set[int] | None) -> Kernel:
    own: dict[int, set[int] | None] = {id_: {value} for id_, value in HOST.values.items()}
    return Kernel(own | {SCTLR_EL1: None} | {parse_register(name): values for name, values in takes.items()})


def test_the_kernel_overrules_the_profile() -> None:
    """Both ways."""
    trial = kernel(CTR_EL0={2, 7})
    assert verdicts(judge(host=HOST, trial=trial), SAME | {CTR_EL0: 7}) == [(CTR_EL0, Action.ACCEPT, 7, 2)]
    assert verdicts(judge(host=FREE, trial=kernel()), SAME | {CTR_EL0: 1}) == [(CTR_EL0, Action.REFUSE, 1, 2)]


def test_what_fits_is_asked_once() -> None:
    trial = kernel()
    assert verdicts(judge(host=HOST, trial=trial), SAME) == []
    assert trial.asked == [dict(sorted(SAME.items()))]


def test_guest_state_that_the_kernel_refuses_is_refused() -> None:
    trial = kernel(SCTLR_EL1={0})
    swap, drop = dict.fromkeys(SAME, "listed"), {SCTLR_EL1: "listed"}
    (verdict,) = judge(host=HOST, trial=trial, swap=swap, drop=drop).judge(registers(SAME))
    assert (verdict.register, verdict.action, verdict.old) == (SCTLR_EL1, Action.REFUSE, SAME[SCTLR_EL1])
    assert verdict.why == "this host's KVM answers EINVAL"
    assert "no rule can change that" in verdict.rule


@pytest.mark.parametrize("mode", Mode)
def test_firmware_that_the_kernel_refuses_is_refused(mode: Mode) -> None:
    (verdict,) = judge(host=HOST, trial=kernel(), mode=mode).judge(registers(SAME | {STD_BMAP: 3}))
    assert (verdict.register, verdict.action, verdict.old, verdict.new) == (STD_BMAP, Action.REFUSE, 3, 1)
    assert "never lowered" in verdict.rule


def test_what_would_go_on_is_tried_too() -> None:
    trial = kernel()
    changed = SAME | {MIDR_EL1: R0, CTR_EL0: 7, ACTLR_EL1: 1}
    judged = judge(R0, host=HOST, trial=trial, swap=dict.fromkeys((MIDR_EL1, CTR_EL0), "x"), drop={ACTLR_EL1: "x"})
    assert [(register, action) for register, action, _, _ in verdicts(judged, changed)] == [
        (ACTLR_EL1, Action.DROP) if register == ACTLR_EL1 else (register, Action.SWAP)
        for register in sorted((MIDR_EL1, CTR_EL0, ACTLR_EL1))
    ]
    first, second = trial.asked
    assert first == changed
    assert second == SAME  # swapped values, and without what was dropped


def test_what_would_go_on_is_not_tried_when_it_does_not_go() -> None:
    trial = kernel()
    assert verdicts(judge(R0, host=HOST, trial=trial), SAME | {MIDR_EL1: R0, CTR_EL0: 7})
    assert len(trial.asked) == 1


def test_a_register_that_is_refused_for_the_sake_of_another() -> None:
    """KVM took the whole as it came, but for one register; with that one changed, it takes another no longer."""
    trial = kernel()
    trial.takes[CCSIDR0] = None
    trial.together[CCSIDR0] = (CTR_EL0, 7)
    (swapped, refused) = judge(host=HOST, trial=trial, swap={CTR_EL0: "listed"}).judge(registers(SAME | {CTR_EL0: 7}))
    assert (swapped.register, swapped.action) == (CTR_EL0, Action.SWAP)
    assert (refused.register, refused.action, refused.old) == (CCSIDR0, Action.REFUSE, SAME[CCSIDR0])
    assert "once the changes are made" in refused.rule


def test_a_swapped_value_that_is_refused_after_all() -> None:
    """The profile is of another day than the kernel."""
    trial = kernel(CTR_EL0={9})
    found = judge(host=HOST, trial=trial, swap={CTR_EL0: "listed"}).judge(registers(SAME | {CTR_EL0: 7}))
    assert [(verdict.register, verdict.action) for verdict in found] == [
        (CTR_EL0, Action.SWAP),
        (CTR_EL0, Action.REFUSE),
    ]
    assert found[-1].why == "this host's KVM answers EINVAL"


def test_values_that_are_not_known_are_not_made_up() -> None:
    trial = kernel()
    source = HostRegisters(replace(HOST, values=HOST.values | {MIDR_EL1: R0}))
    found = judge(R0, host=HOST, trial=trial).judge(source)
    assert [(verdict.register, verdict.action) for verdict in found] == [(MIDR_EL1, Action.SWAP)]
    assert [asked[SCTLR_EL1] for asked in trial.asked] == [None, None]


def test_a_processor_that_the_kernel_takes_still_needs_the_whitelist() -> None:
    trial = kernel(MIDR_EL1=None)
    assert verdicts(judge(host=HOST, trial=trial), SAME | {MIDR_EL1: R0}) == [(MIDR_EL1, Action.REFUSE, R0, R3)]
    assert verdicts(judge(R0, host=HOST, trial=trial), SAME | {MIDR_EL1: R0}) == [(MIDR_EL1, Action.ACCEPT, R0, R3)]


# --- vCPUs that are alike are judged once


def test_vcpus_that_are_alike_have_verdicts_of_their_own() -> None:
    one = judge(R0, host=HOST)
    first, second = (one.judge(registers(SAME | {MIDR_EL1: R0, SCTLR_EL1: vcpu}, vcpu)) for vcpu in (0, 1))
    assert [verdict._replace(vcpu=1) for verdict in first] == second
    assert [verdict.vcpu for verdict in first + second] == [0, 1]


def test_what_a_judge_remembers_does_not_change_what_it_says() -> None:
    """The condition of a harmless register stands in another one, which the destination may have as it is."""
    tcr2, mmfr3 = parse_register("TCR2_EL1"), parse_register("ID_AA64MMFR3_EL1")
    host = HostProfile("made up", HOST.values, frozenset({SCTLR_EL1, mmfr3}))
    cases = [
        SAME | {MIDR_EL1: midr, tcr2: value, mmfr3: feature}
        for midr in (R0, R3)
        for value in (0, 1)
        for feature in (0, 1)
    ]
    one = judge(R0, host=host)
    every = [verdicts(judge(R0, host=host), case) for case in cases]
    assert len(set(map(str, every))) == len(cases)
    for _ in range(2):
        assert [verdicts(one, case) for case in cases] == every


def test_a_judge_does_not_remember_for_ever() -> None:
    one = judge(host=HOST)
    for value in range(1000):
        (found,) = verdicts(one, SAME | {CTR_EL0: 0x100 + value})
        assert found == (CTR_EL0, Action.REFUSE, 0x100 + value, 2)
    assert len(one._known) <= 256


# --- kinds of vCPU


def test_a_vcpu_is_judged_as_its_kind_finds_the_destination() -> None:
    """Each value is right for one kind alone."""
    for host in (WHOLE, NO_SVE, NO_PMU, NEITHER):
        values = host.values | dict.fromkeys(host.others or (), 0)
        assert verdicts(judge(host=WHOLE), values) == []
    mixed = NO_SVE.values | dict.fromkeys(BASE.others or (), 0)
    assert [(id_, action) for id_, action, *_ in verdicts(judge(host=WHOLE), mixed)] == [
        (PFR0, Action.REFUSE),
        (ZFR0, Action.REFUSE),
    ]


def test_a_kind_that_the_profile_does_not_know_is_refused_with_what_helps() -> None:
    values = NO_PMU.values | dict.fromkeys(NO_PMU.others or (), 0)
    for mode in (Mode.REPAIR, Mode.BLIND):
        (verdict,) = judge(host=replace(BASE, all_kinds=False), mode=mode).judge(registers(values))
        assert (verdict.name, verdict.action, verdict.option) == ("PMCR_EL0", Action.REFUSE, "")
        assert verdict.rule == "its vCPU has SVE, and the profile of the destination knows vCPUs with PMU_V3, SVE"
        assert "'host probe'" in verdict.advice
        assert "-cpu host,pmu=off" in verdict.advice


def test_a_newer_qemu_takes_registers_that_its_host_lacks() -> None:
    values = BASE.values | dict.fromkeys(BASE.others or (), 0) | {parse_register("TCR2_EL1"): 0}
    for qemu, taken in (("10.0.13", False), ("11.0", False), ("11.1.3", True), ("12.0", True), (None, False)):
        found = verdicts(judge(host=replace(WHOLE, qemu=qemu)), values)
        assert (found == []) == taken, qemu
