"""A refusal in one line: the first register in full, a handful of others by name."""

from __future__ import annotations

from formats.arm.sysreg import parse_register
from proxy.judged_state import in_one_line
from proxy.judging.verdict import Action, Verdict


def refused(number: int) -> Verdict:
    return Verdict(0, parse_register(f"CCSIDR_EL1[{number}]"), Action.REFUSE, 1, 2, "not listed", why="fixed")


def test_one_register() -> None:
    assert in_one_line([refused(0)], helped=True) == "CCSIDR_EL1[0]: fixed; not listed"


def test_a_few_are_all_named() -> None:
    line = in_one_line([refused(number) for number in range(3)], helped=True)
    assert line == "CCSIDR_EL1[0]: fixed; not listed; refused, too: CCSIDR_EL1[1], CCSIDR_EL1[2]"


def test_of_a_hundred_twelve_are_named() -> None:
    line = in_one_line([refused(number) for number in range(101)], helped=True)
    assert line.count("CCSIDR_EL1") == 1 + 12
    assert line.endswith(", and 88 more, which 'check' lists")
    assert len(line) < 320
