"""Baselines: how guests are to be started so that all hosts of a group can take them, and what that costs them.

A guest has what its host gave it when it started. What `-cpu host` is told to leave out then needs no change when the
guest moves to a host that has not got it; x86 clouds do so with CPU models and EVC.
"""

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

from formats.arm.id_fields import differing
from formats.arm.sysreg import MIDR_EL1, describe
from proxy.hosts.host_registers import HostRegisters
from proxy.hosts.started_qemu import CPU_PROPERTIES, has_property
from proxy.judging.explain import dangers
from proxy.judging.start_flags import Start
from proxy.judging.verdict import Action

if TYPE_CHECKING:
    from formats.arm.vcpu_features import Kind
    from proxy.fleet.host import FleetHost
    from proxy.hosts.profile import HostProfile
    from proxy.judging.judge import Judge

_LOSES: Final = {
    "pmu": "performance counters: perf counts no cycles, instructions or cache misses",
    "sve": "scalable vectors: programs fall back on those of 128 bits (Advanced SIMD)",
    "pauth": "pointer authentication: return addresses are no longer signed",
}
"""What a guest goes without, by the property that is off."""
_MOST_NAMES: Final = 8


class Level(enum.IntEnum):
    """What has to change when a guest moves within a group; less is better."""

    NOTHING = 0
    MIDR = 1
    """MIDR_EL1 alone, which the guest cannot see."""
    REPAIR = 2
    """Whatever the policy allows."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a property of `-cpu host` that is off costs a guest.

    Attributes:
        name: The property.
        loses: What the guest goes without, for people.
        fields: The ID fields by which it sees that, on the hosts of the group: `ID_AA64PFR0_EL1.SVE 1 -> 0`.
    """

    name: str
    loses: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A way to start guests, and hosts of which each takes such guests of all the others.

    Attributes:
        start: How the guests are started.
        hosts: The hosts' names, two at least.
        changes: The registers, by id, that some host of them has to be given other values of, or goes without.
        allowed: Whether the policy allows all of that.
        costs: What is off, and what that costs, for hosts that would have it.
    """

    start: Start
    hosts: tuple[str, ...]
    changes: frozenset[int]
    allowed: bool
    costs: tuple[Cost, ...]

    @property
    def level(self) -> Level:
        """What has to change."""
        if not self.changes:
            return Level.NOTHING
        return Level.MIDR if self.changes == {MIDR_EL1} else Level.REPAIR

    def in_short(self) -> str:
        """Say in a few words what has to change: `MIDR_EL1 alone changes, which the policy does not allow`."""
        names = [describe(register).name for register in sorted(self.changes, key=lambda one: (one != MIDR_EL1, one))]
        match self.level:
            case Level.NOTHING:
                return "nothing changes"
            case Level.MIDR:
                words = f"{names[0]} alone changes"
            case Level.REPAIR if len(names) > _MOST_NAMES:
                words = f"{len(names)} registers change or are left out"
            case Level.REPAIR:
                words = f"{', '.join(names)} change or are left out"
        return words if self.allowed else f"{words}, which the policy does not allow"

    def as_dict(self) -> dict[str, Any]:
        """Return it as it goes into JSON."""
        return {
            "hosts": list(self.hosts),
            "start": self.start.as_dict(),
            "changes": [describe(register).name for register in sorted(self.changes)],
            "allowed": self.allowed,
            "costs": [{"off": cost.name, "loses": cost.loses, "fields": list(cost.fields)} for cost in self.costs],
        }


def find_baselines(
    hosts: Iterable["FleetHost"], judges: Mapping[str, "Judge"], progress: Callable[[int], None] = lambda _: None
) -> list[Baseline]:
    """Find the ways to start guests that are worth their cost.

    One is left out where another asks for no more to be off, changes no more and takes in the same hosts; so are groups
    of guests that start with all that their hosts have, and have to be repaired: `Fleet.groups` has them.

    Args:
        hosts: With names that differ.
        judges: What knows each host as a destination, by `FleetHost.same_as`.
        progress: Is told after each way to start guests, that it was one more.
    """
    known = tuple(hosts)
    pairs = _Pairs(judges)
    found: list[Baseline] = []
    for off in ways_to_start(known):
        for level in Level:
            for group in _groups(pairs, known, off, level):
                baseline = _baseline(pairs, group, off)
                if not any(_no_worse(other, baseline) for other in found):
                    found.append(baseline)
        progress(1)
    return [baseline for baseline in found if baseline.start.off or baseline.level is not Level.REPAIR]


def ways_to_start(hosts: Iterable["FleetHost"]) -> list[tuple[str, ...]]:
    """Return the properties of `-cpu host` that may be off, in every combination, the fewest first."""
    offered = frozenset[str]().union(*(host.profile.kinds[0] for host in hosts))
    names = sorted(name for name, features in CPU_PROPERTIES.items() if features & offered)
    return [those for count in range(len(names) + 1) for those in combinations(names, count)]


class _Pair:
    """What becomes of a guest that goes from one host to another.

    Attributes:
        changes: The registers, by id, that the destination does not take as they are.
        dangerous: Whether the guest would suffer though every register is taken.
    """

    def __init__(self, judge: "Judge", guest: HostRegisters, *, dangerous: bool) -> None:
        self.changes = frozenset(judge.refused(guest))
        self.dangerous = dangerous
        self._judge = judge
        self._guest = guest

    @cached_property
    def goes(self) -> bool:
        """Whether the policy allows what has to change."""
        return not self.changes or all(one.action is not Action.REFUSE for one in self._judge.judge(self._guest))


class _Pairs:
    """Judges pairs of hosts, those with like profiles once."""

    def __init__(self, judges: Mapping[str, "Judge"]) -> None:
        self._judges = judges
        self._guests: dict[tuple[str, tuple[str, ...]], HostRegisters | None] = {}
        self._found: dict[tuple[str, str, tuple[str, ...]], _Pair | None] = {}

    def between(self, source: "FleetHost", destination: "FleetHost", off: tuple[str, ...]) -> _Pair | None:
        """Judge a guest that was started on one host and goes to another; None where the profiles cannot tell."""
        key = source.same_as, destination.same_as, off
        if key not in self._found:
            self._found[key] = self._judged(source, destination, off)
        return self._found[key]

    def guest_of(self, host: "FleetHost", off: tuple[str, ...]) -> HostRegisters | None:
        """Return the vCPUs of guests that are started so on a host; None where its profile does not know them."""
        key = host.same_as, off
        if key not in self._guests:
            profile = _started(host.profile, off)
            self._guests[key] = None if profile is None else HostRegisters(profile)
        return self._guests[key]

    def _judged(self, source: "FleetHost", destination: "FleetHost", off: tuple[str, ...]) -> _Pair | None:
        guest, there = self.guest_of(source, off), self.guest_of(destination, off)
        if guest is None or there is None:
            return None
        return _Pair(self._judges[destination.same_as], guest, dangerous=bool(dangers(guest.profile, there.profile)))


def _started(profile: "HostProfile", off: tuple[str, ...]) -> "HostProfile | None":
    if not all(has_property(profile.qemu, name) for name in off):
        return None
    features = frozenset[str]().union(*(CPU_PROPERTIES[name] for name in off))
    kind: Kind = profile.kinds[0] - features
    return profile.for_kind(kind)


def _groups(
    pairs: _Pairs, hosts: tuple["FleetHost", ...], off: tuple[str, ...], level: Level
) -> Iterator[list["FleetHost"]]:
    """Yield sets of two hosts or more that all take each other's guests with such changes; each host is in one."""

    def takes(source: "FleetHost", destination: "FleetHost") -> bool:
        pair = pairs.between(source, destination, off)
        if pair is None or pair.dangerous:
            return False
        return pair.goes if level is Level.REPAIR else pair.changes <= ({MIDR_EL1} if level is Level.MIDR else set())

    groups: list[list[FleetHost]] = []
    for host in hosts:
        for group in groups:
            if all(takes(host, other) and takes(other, host) for other in group):
                group.append(host)
                break
        else:
            groups.append([host])
    return (group for group in groups if len(group) > 1)


def _baseline(pairs: _Pairs, group: list["FleetHost"], off: tuple[str, ...]) -> Baseline:
    judged = [pairs.between(one, other, off) for one in group for other in group if one is not other]
    told = [pair for pair in judged if pair is not None]
    costs = (_cost(pairs, group, name) for name in off)
    return Baseline(
        start=Start(off),
        hosts=tuple(host.name for host in group),
        changes=frozenset[int]().union(*(pair.changes for pair in told)),
        allowed=all(pair.goes for pair in told),
        costs=tuple(cost for cost in costs if cost is not None),
    )


def _cost(pairs: _Pairs, group: list["FleetHost"], name: str) -> Cost | None:
    """Return what a property that is off costs guests of these hosts; None where none of them would have it."""
    fields: dict[str, None] = {}
    for host in group:
        guest = pairs.guest_of(host, (name,))
        if guest is None or guest.profile.kind == host.profile.kind:
            continue
        for register, value in host.profile.values.items():
            less = guest.profile.values.get(register)
            if less is None or less == value:
                continue
            for field in differing(register, value, less):
                fields[f"{describe(register).name}.{field.change(value, less)}"] = None
    return Cost(name, _LOSES[name], tuple(fields)) if fields else None


def _no_worse(other: Baseline, baseline: Baseline) -> bool:
    return (
        set(other.start.off) <= set(baseline.start.off)
        and other.changes <= baseline.changes
        and set(other.hosts) >= set(baseline.hosts)
    )
