"""The judge: one verdict for each register that is changed or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from formats.sysreg import MIDR_EL1, describe, parse_register
from proxy.host import HostProfile
from proxy.judge import Action, Judge
from proxy.policy import Mode, Policy
from tests.proxy.helpers import PSCI_VERSION, R0, R3, REVIDR_EL1, judge, midr_only, registers

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
    assert "processor id 0x411fd070" in verdict.rule
    assert "the whitelist has 0x410fd034, none" in verdict.rule
    assert "--allow-midr 0x411fd070" in verdict.rule


def test_the_destinations_own_processor_needs_no_whitelist() -> None:
    assert verdicts(judge(host=midr_only()), SAME) == []


def test_a_stream_without_a_processor_id_needs_the_word_none() -> None:
    tcg = {id_: value for id_, value in SAME.items() if id_ != MIDR_EL1}
    assert verdicts(judge(R0, host=HOST), tcg) == [(MIDR_EL1, Action.REFUSE, None, R3)]
    (verdict,) = judge(R0, host=HOST).judge(registers(tcg))
    assert "--allow-midr none" in verdict.rule
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
    assert "--allow-register CTR_EL0" in verdict.rule


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
    policy = Policy({R0: "policy.toml: whitelist"}, {MIDR_EL1: "default"})
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
    assert list(Judge(Policy({}, {}, Mode.OBSERVE), None).judge(registers(SAME))) == []
