"""Where a vCPU's registers are not a host's own: the few that there is anything to judge about."""

from itertools import compress
from operator import itemgetter, ne
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.arm.register_list import RegisterList

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.hosts.profile import HostProfile
    from proxy.judging.verdict import Registers

_MOST_PLANS: Final = 16


class _Plan(NamedTuple):
    """How to look at the values of one list of ids.

    Attributes:
        missing: Indexes of the registers that the host does not have.
        known: Indexes of those whose value is the host's own matter.
        own: The host's values of these.
        pick: Takes the values of these out of the list's.
    """

    missing: tuple[int, ...]
    known: tuple[int, ...]
    own: tuple[int, ...]
    pick: "Callable[[tuple[int, ...]], tuple[int, ...]]"


class Comparison:
    """Compares vCPUs with a host.

    The vCPUs of a guest have one list of ids; what is to be looked at in it is found out once, because the guest stands
    while its vCPUs are judged.
    """

    def __init__(self, host: "HostProfile") -> None:
        self._host = host
        self._plans: dict[tuple[int, ...], _Plan] = {}

    def differing(self, registers: "Registers") -> "list[tuple[int, int | None]]":
        """Return ids and values of the registers that the host lacks, or has with another value; in their order."""
        host = self._host
        if not isinstance(registers, RegisterList):
            own = host.values
            return [
                (register, value)
                for register, value in registers.items()
                if (value not in (None, own[register]) if register in own else host.lacks(register))
            ]
        plan = self._plan(registers.ids)
        values = registers.values()
        found = plan.missing
        different = tuple(compress(plan.known, map(ne, plan.pick(values), plan.own)))
        if different:
            found = tuple(sorted((*plan.missing, *different)))
        return [(registers.ids[index], values[index]) for index in found]

    def _plan(self, ids: tuple[int, ...]) -> _Plan:
        plan = self._plans.get(ids)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[ids] = self._make_plan(ids)
        return plan

    def _make_plan(self, ids: tuple[int, ...]) -> _Plan:
        host = self._host
        missing = tuple(index for index, register in enumerate(ids) if host.lacks(register))
        known = tuple(index for index, register in enumerate(ids) if register in host.values)
        # itemgetter returns a tuple for two and more.
        pick = itemgetter(*known) if len(known) > 1 else lambda values: tuple(values[index] for index in known)
        return _Plan(missing, known, tuple(host.values[ids[index]] for index in known), pick)
