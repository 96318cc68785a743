"""What six hosts' kernels answered when asked (`make matrix`), held against what their profiles tell."""

from __future__ import annotations

import json
from itertools import permutations

import pytest

from formats.arm.sysreg import describe, parse_register
from proxy.hosts.host_registers import HostRegisters
from proxy.hosts.profile_file import load_profile
from proxy.judging.judge import Judge
from proxy.policy.policy import Policy
from tests.captures import CAPTURES
from tests.proxy.helpers import EVERYTHING, pairing, rules

HOSTS = CAPTURES / "hosts"
PROFILES = {path.stem: load_profile(path) for path in HOSTS.glob("*.toml")}
VERDICTS: dict[str, dict[str, str]] = json.loads((HOSTS / "verdicts.json").read_text())


def test_every_pair_was_asked() -> None:
    assert len(PROFILES) == 6
    assert VERDICTS.keys() == {f"{here} {there}" for here, there in permutations(PROFILES, 2)}


@pytest.mark.parametrize("pair", VERDICTS)
def test_the_profile_answers_as_the_kernel_did(pair: str) -> None:
    here, there = (PROFILES[name] for name in pair.split())
    invariant = {register: "listed" for register in here.values if describe(register).invariant}
    judge = Judge(Policy((pairing(here.midr),), rules(invariant), accept=EVERYTHING), there)
    found = {verdict.name: verdict.action.value for verdict in judge.judge(HostRegisters(here))}
    assert found == VERDICTS[pair]


def test_the_lists_are_not_all_alike() -> None:
    """All that can become of a register is in them, so that a judge who always says the same would be found out."""
    actions = {action for verdicts in VERDICTS.values() for action in verdicts.values()}
    assert actions == {"accept", "swap", "drop", "refuse"}
    assert all(parse_register(name) for verdicts in VERDICTS.values() for name in verdicts)
