"""Advice is true: whoever follows what is printed gets the guest through, or nothing is advised."""

from __future__ import annotations

import itertools
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import parse_register
from proxy.cli.options.judging import policy_of
from proxy.hosts.host_registers import HostRegisters
from proxy.hosts.profile_file import load_profile
from proxy.judging.check import check
from proxy.judging.judge import Judge
from proxy.judging.verdict import Action
from proxy.policy.policy import DEFAULT_RULES, Mode, Policy
from proxy.policy.rules import Rule, RuleAction, Rules
from tests.captures import CAPTURES

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile
    from proxy.judging.check import Answer

HOSTS = {path.stem: load_profile(path) for path in sorted((CAPTURES / "hosts").glob("*.toml"))}
NEWER_TO_OLDER = HOSTS["trixie-n1"], HOSTS["bookworm-n1"]
A72, N1 = HOSTS["trixie-a72"], HOSTS["trixie-n1"]


def asked(source: HostProfile, destination: HostProfile, policy: Policy) -> Answer:
    return check(Judge(policy, destination), [HostRegisters(source)])


def followed(policy: Policy, answer: Answer) -> Policy:
    """Give the options that were printed, as a shell would."""
    return given(policy, *answer.options, *answer.losses)


def given(policy: Policy, *options: str) -> Policy:
    words = [shlex.split(option) for option in options]

    def those(name: str) -> tuple[str, ...]:
        return tuple(names for option, names in words if option == f"--allow-{name}")

    return policy_of(
        policy,
        midr=those("midr"),
        register=those("register"),
        drop=those("drop"),
        loss=those("loss"),
        erratum=those("erratum"),
    )


@pytest.mark.parametrize("here", HOSTS)
@pytest.mark.parametrize("there", HOSTS)
def test_following_the_advice_lets_the_guest_go(here: str, there: str) -> None:
    answer = asked(HOSTS[here], HOSTS[there], Policy())
    if answer.goes or not answer.helped:
        assert answer.options == answer.losses == []
        return
    after = asked(HOSTS[here], HOSTS[there], followed(Policy(), answer))
    assert after.goes
    assert after.options == after.losses == []


def test_some_are_helped_and_some_are_not() -> None:
    answers = [asked(HOSTS[one], HOSTS[other], Policy()) for one, other in itertools.permutations(HOSTS, 2)]
    assert {(answer.goes, answer.helped) for answer in answers} >= {(False, True), (False, False)}


def test_what_is_lost_and_met_is_named_one_at_a_time() -> None:
    """AArch32 at EL1, and an erratum that a guest of the source does nothing about."""
    answer = asked(A72, N1, Policy())
    assert "--allow-loss ID_AA64PFR0_EL1.EL1" in answer.losses
    assert [loss for loss in answer.losses if loss.startswith("--allow-erratum ")]
    for left_out in answer.losses:
        rest = [loss for loss in answer.losses if loss != left_out]
        assert not asked(A72, N1, given(Policy(), *answer.options, *rest)).goes, left_out


def test_blind_asks_for_no_names() -> None:
    policy = followed(Policy(), asked(A72, N1, Policy()))
    blind = policy_of(Policy(), mode=Mode.BLIND.value, midr=(f"{A72.midr:#x}",))
    assert asked(A72, N1, blind).goes == asked(A72, N1, policy).goes


def test_a_rule_for_the_field_names_the_loss() -> None:
    dfr0 = parse_register("ID_AA64DFR0_EL1")
    answer = asked(*NEWER_TO_OLDER, Policy())
    assert answer.losses == ["--allow-loss ID_AA64DFR0_EL1.DebugVer"]
    (verdict,) = (one for one in answer.verdicts if one.register == dfr0)
    assert (verdict.action, verdict.option) == (Action.REFUSE, "--allow-register ID_AA64DFR0_EL1")
    for field, goes in (("DebugVer", True), (None, False)):
        rules = Rules({**DEFAULT_RULES.by_register, dfr0: (Rule("policy", RuleAction.SWAP, field),)})
        policy = replace(given(Policy(), *answer.options[1:]), rules=rules)
        others = [option for option in answer.options if option.startswith("--allow-drop")]
        found = {one.register: one.action for one in asked(*NEWER_TO_OLDER, given(policy, *others)).verdicts}
        assert (found[dfr0] is Action.SWAP) == goes
