"""What the lab's kernels answered when asked about each other's guests (`make matrix`), held against their profiles."""

from __future__ import annotations

import json
from itertools import permutations

import pytest

from formats.arm.sysreg import describe, parse_register
from proxy.hosts.host_registers import HostRegisters
from proxy.hosts.profile_file import load_profile
from proxy.hosts.started_qemu import CPU_PROPERTIES
from proxy.judging.judge import Judge
from proxy.policy.policy import Policy
from tests.captures import CAPTURES
from tests.lab.matrix_hosts import PLACES
from tests.proxy.helpers import EVERYTHING, pairing, rules

HOSTS = CAPTURES / "hosts"
PROFILES = {path.stem: load_profile(path) for path in HOSTS.glob("*.toml")}
VERDICTS: dict[str, dict[str, str]] = json.loads((HOSTS / "verdicts.json").read_text())


def test_every_pair_was_asked() -> None:
    assert PROFILES.keys() == {str(place) for place in PLACES}
    assert VERDICTS.keys() == {
        f"{here} {cpu} {there}" for here, there in permutations(PLACES, 2) if there.asks for cpu in here.cpus
    }


@pytest.mark.parametrize("pair", VERDICTS)
def test_the_profile_answers_as_the_kernel_did(pair: str) -> None:
    name, cpu, destination = pair.split()
    here, there = PROFILES[name], PROFILES[destination]
    off = [CPU_PROPERTIES[word.removesuffix("=off")] for word in cpu.split(",")[1:]]
    guest = here.for_kind(here.kind - frozenset().union(*off))
    if guest is None:
        # Linux 5.10 lists and says the same of a vCPU without PMU as of one with it.
        assert (here.kernel or "").startswith("Linux 5.10.")
        guest = here
    invariant = {register: "listed" for register in here.values if describe(register).invariant}
    judge = Judge(Policy((pairing(here.midr),), rules(invariant), accept=EVERYTHING), there)
    found = {verdict.name: verdict.action.value for verdict in judge.judge(HostRegisters(guest))}
    assert found == VERDICTS[pair]


def test_the_lists_are_not_all_alike() -> None:
    """All that can become of a register is in them, so that a judge who always says the same would be found out."""
    actions = {action for verdicts in VERDICTS.values() for action in verdicts.values()}
    assert actions == {"accept", "swap", "drop", "refuse"}
    assert all(parse_register(name) for verdicts in VERDICTS.values() for name in verdicts)


def test_every_host_has_the_same_interrupt_controllers() -> None:
    """Of one emulator; where they differ, they are judged, see test_interrupts.py."""
    known = {profile.interrupts for profile in PROFILES.values()}
    assert len(known) == 1
    assert None not in known
