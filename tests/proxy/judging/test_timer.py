"""The timer's frequency: a guest whose clock would be wrong is refused where it is known, until that is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.cli.options.judging import policy_of
from proxy.errors import ConfigError, RefusedError
from proxy.hosts.host_registers import HostRegisters
from proxy.judging.check import check
from proxy.judging.judge import Judge
from proxy.judging.verdict import Action
from proxy.policy.acceptance import CNTFRQ_EL0
from proxy.policy.policy import Mode, Policy
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import capture, live, profile

NAME = "kvm-trixie-a57r3"
HERE, THERE = (replace(profile(NAME), timer_frequency=hertz) for hertz in (25_000_000, 1_000_000_000))
ALLOWED = policy_of(Policy(), loss=("CNTFRQ_EL0.Frequency",))


def test_a_check_of_a_profile_names_it() -> None:
    answer = check(Judge(Policy(), THERE), [HostRegisters(HERE)])
    (verdict,) = answer.verdicts
    assert (verdict.register, verdict.action, verdict.old, verdict.new) == (
        CNTFRQ_EL0, Action.REFUSE, 25_000_000, 1_000_000_000,
    )  # fmt: skip
    assert "25000000 Hz on the source and 1000000000 Hz on the destination" in verdict.rule
    # The destination would take it; that is the trouble.
    assert (answer.direct, answer.goes) == (True, False)
    assert answer.losses == ["--allow-loss CNTFRQ_EL0.Frequency"]


@pytest.mark.parametrize("policy", [ALLOWED, Policy(mode=Mode.BLIND)])
def test_it_can_be_accepted(policy: Policy) -> None:
    answer = check(Judge(policy, THERE), [HostRegisters(HERE)])
    assert answer.goes
    assert [verdict.action for verdict in answer.verdicts] == [Action.ACCEPT]


@pytest.mark.parametrize("frequency", [None, 1_000_000_000])
def test_what_is_the_same_or_not_known_is_no_matter(frequency: int | None) -> None:
    assert check(Judge(Policy(), THERE), [HostRegisters(replace(HERE, timer_frequency=frequency))]).verdicts == ()


def test_a_known_source_is_refused_at_its_first_bytes() -> None:
    stream = live(capture(NAME))
    rewriter = Rewriter(Judge(Policy(), THERE), live=True, source=[HostRegisters(HERE)])
    with pytest.raises(RefusedError, match=r"offset 0x\w+: by what is known of the source, CNTFRQ_EL0: .* name it: "):
        rewriter.feed(stream[:200])
    rewriter = Rewriter(Judge(ALLOWED, THERE), live=True, source=[HostRegisters(HERE)])
    assert b"".join(map(bytes, rewriter.feed(stream))) == stream
    # Nothing in the stream tells it.
    assert b"".join(map(bytes, Rewriter(Judge(Policy(), THERE), live=True).feed(stream))) == stream


def test_it_is_nothing_that_could_be_swapped() -> None:
    with pytest.raises(ConfigError, match="not an invariant register"):
        policy_of(Policy(), register=("CNTFRQ_EL0",))
