"""Who can go where: every ordered pair of hosts, judged by their profiles."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

from proxy.fleet.baseline import Baseline, find_baselines, ways_to_start
from proxy.hosts.host_registers import HostRegisters
from proxy.judging.check import Answer, check
from proxy.judging.judge import Judge
from proxy.judging.verdict import Action

if TYPE_CHECKING:
    from proxy.fleet.host import FleetHost
    from proxy.policy.policy import Policy

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Fleet:
    """Hosts, and the answer for each ordered pair of them.

    Attributes:
        hosts: In the order in which they were given.
        answers: What a check says, by the names of source and destination. Pairs of like profiles share one.
        baselines: How guests are to be started so that hosts take them; the least to be off comes first.
    """

    hosts: "tuple[FleetHost, ...]"
    answers: dict[tuple[str, str], Answer]
    baselines: tuple[Baseline, ...] = ()

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
            "baselines": [baseline.as_dict() for baseline in self.baselines],
            "pairs": [
                {"source": source, "destination": destination} | answer.as_dict()
                for (source, destination), answer in self.answers.items()
            ],
        }


def steps_of(hosts: "Sequence[FleetHost]") -> int:
    """Return of how many steps `judge_fleet` tells its progress."""
    return len(hosts) * (len(hosts) - 1) + len(ways_to_start(hosts))


def judge_fleet(hosts: "Iterable[FleetHost]", policy: "Policy", progress: Callable[[int], None]) -> Fleet:
    """Judge a guest that starts on each host against every other.

    Args:
        hosts: With names that differ.
        policy: What the operator vouches for.
        progress: Is told after each pair, and each way to start guests, that it was one more.
    """
    known = tuple(hosts)
    guests = {host.same_as: HostRegisters(host.profile) for host in known}
    judges = judges_of(known, policy)
    judged: dict[tuple[str, str], Answer] = {}
    answers = {}
    for source, destination in permutations(known, 2):
        kind = source.same_as, destination.same_as
        if kind not in judged:
            judged[kind] = check(judges[destination.same_as], [guests[source.same_as]])
        answers[source.name, destination.name] = judged[kind]
        progress(1)
    return Fleet(known, answers, tuple(find_baselines(known, judges, progress)))


def judges_of(hosts: "Iterable[FleetHost]", policy: "Policy") -> dict[str, Judge]:
    """Return a judge of guests that go to each host, by its `same_as`; like hosts have one."""
    return {host.same_as: Judge(policy, host.profile) for host in hosts}


def in_short(answer: Answer) -> str:
    """Return what becomes of a guest, in a few words: `as it is`, `5 swapped, 17 left out`, `refused`."""
    if not answer.goes:
        return "refused"
    swapped, dropped = len(answer.registers(Action.SWAP)), len(answer.registers(Action.DROP))
    words = [f"{swapped} swapped"] if swapped else []
    words += [f"{dropped} left out"] if dropped else []
    return ", ".join(words) or "as it is"
