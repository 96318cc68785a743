"""Who can go where: every ordered pair of hosts, judged by their profiles."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

from formats.arm.midr import parse_midr_el1
from proxy.hosts.host_registers import HostRegisters
from proxy.hosts.profile import HostProfile
from proxy.hosts.profile_text import write_profile
from proxy.judging.check import Answer, check
from proxy.judging.judge import Judge
from proxy.judging.verdict import Action

if TYPE_CHECKING:
    from proxy.policy.policy import Policy

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class FleetHost:
    """One host: what it is called, and its profile."""

    name: str
    profile: HostProfile

    @property
    def processor(self) -> str:
        """The processor, for people."""
        midr = self.profile.midr
        return "a processor without an id" if midr is None else str(parse_midr_el1(midr))

    def as_dict(self) -> dict[str, Any]:
        """Return it as it goes into JSON."""
        midr = self.profile.midr
        return {
            "name": self.name,
            "description": self.profile.description,
            "midr": None if midr is None else f"{midr:#x}",
            "processor": self.processor,
            "kernel": self.profile.kernel,
        }


@dataclass(frozen=True, slots=True)
class Fleet:
    """Hosts, and the answer for each ordered pair of them.

    Attributes:
        hosts: In the order in which they were given.
        answers: What a check says, by the names of source and destination. Pairs of like profiles share one.
    """

    hosts: tuple[FleetHost, ...]
    answers: dict[tuple[str, str], Answer]

    def goes(self, source: str, destination: str) -> bool:
        """Tell whether a guest of one host can go to another."""
        return source == destination or self.answers[source, destination].goes

    def destinations(self, source: str) -> list[str]:
        """Return where a host's guests can go."""
        return [host.name for host in self.hosts if host.name != source and self.goes(source, host.name)]

    def groups(self) -> list[list[str]]:
        """Return sets of hosts, each of which can reach all others of its set; each host is in one.

        A host joins the first set that takes it, in the order in which the hosts were given.
        """
        groups: list[list[str]] = []
        for host in self.hosts:
            for group in groups:
                if all(self.goes(host.name, other) and self.goes(other, host.name) for other in group):
                    group.append(host.name)
                    break
            else:
                groups.append([host.name])
        return groups

    def as_dict(self) -> dict[str, Any]:
        """Return it as it goes into JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "hosts": [host.as_dict() | {"destinations": self.destinations(host.name)} for host in self.hosts],
            "groups": self.groups(),
            "pairs": [
                {"source": source, "destination": destination} | answer.as_dict()
                for (source, destination), answer in self.answers.items()
            ],
        }


def judge_fleet(hosts: Iterable[FleetHost], policy: "Policy", progress: Callable[[int], None]) -> Fleet:
    """Judge a guest that starts on each host against every other.

    Args:
        hosts: With names that differ.
        policy: What the operator vouches for.
        progress: Is told after each pair, that it was one more.
    """
    known = tuple(hosts)
    kinds = {host.name: write_profile(replace(host.profile, description="")) for host in known}
    judged: dict[tuple[str, str], Answer] = {}
    answers = {}
    for source, destination in permutations(known, 2):
        kind = kinds[source.name], kinds[destination.name]
        if kind not in judged:
            judged[kind] = check(Judge(policy, destination.profile), [HostRegisters(source.profile)])
        answers[source.name, destination.name] = judged[kind]
        progress(1)
    return Fleet(known, answers)


def in_short(answer: Answer) -> str:
    """Return what becomes of a guest, in a few words: `as it is`, `5 swapped, 17 left out`, `refused`."""
    if not answer.goes:
        return "refused"
    swapped, dropped = len(answer.registers(Action.SWAP)), len(answer.registers(Action.DROP))
    words = [f"{swapped} swapped"] if swapped else []
    words += [f"{dropped} left out"] if dropped else []
    return ", ".join(words) or "as it is"
