"""The kinds of migration, and the places in each at which a fault can come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from formats.frame.event import NEED_DATA
from formats.stream.parser import StreamParser
from formats.vmstate.device_state import DeviceState
from tests.campaign.leg import BACKWARD, FORWARD, Place

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from tests.campaign.leg import Leg

_PACKAGE = 100_000
"""Bytes of a postcopy package, and some more."""

_REQUESTS = 300
"""Bytes of a return path: some page requests and acknowledgements."""


@dataclass(frozen=True)
class Kind:
    """A way to migrate.

    Attributes:
        capabilities: What both QEMUs have on.
        parameters: What both have set.
        phases: Where faults come.
        postcopy: Whether the migration goes over to postcopy.
        held: Whether the destination is started with -S, and its guest let go by a coordinator; see docs/safety.md.
        breaks: Whether its connection breaks in postcopy, so that it is recovered; the fault comes then.
    """

    name: str
    phases: tuple[str, ...]
    capabilities: Mapping[str, bool] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    postcopy: bool = False
    held: bool = False
    breaks: bool = False


_PRECOPY = ("header", "RAM", "device state", "vmdesc", "SHUT")
_POSTCOPY = ("header", "advised", "package", "postcopy", "requests")
_RAM = {"postcopy-ram": True}
_CHANNELS = {"multifd-channels": 4}

KINDS = {
    kind.name: kind
    for kind in (
        Kind("plain", _PRECOPY),
        Kind("held", _PRECOPY, held=True),
        Kind("multifd", (*_PRECOPY, "channels", "channels"), {"multifd": True}, _CHANNELS),
        Kind("postcopy", _POSTCOPY, _RAM, postcopy=True),
        Kind("preempt", (*_POSTCOPY, "channels"), {**_RAM, "postcopy-preempt": True}, postcopy=True),
        Kind("recovery", ("recovery", "recovery requests"), _RAM, postcopy=True, breaks=True),
    )
}

LATER = frozenset({"package", "postcopy", "requests"})
"""Phases that begin when a migration is told to go over to postcopy."""

AT_RECOVERY = frozenset({"recovery", "recovery requests"})


class Sizes(NamedTuple):
    """An undisturbed migration's offsets, in bytes.

    Attributes:
        header: Where the file header and the configuration end.
        state: Where the device state begins, in the first connection.
        vmdesc: Where the sections end there.
        end: Where the stream ends there.
        back: What came back.
        total: What all connections brought.
    """

    header: int
    state: int
    vmdesc: int
    end: int
    back: int
    total: int


def measure(leg: Leg) -> Sizes:
    """Measure an undisturbed migration, whose first connection the leg has recorded."""
    assert leg.recorded is not None
    stream = bytes(leg.recorded)
    parser, offsets, state, vmdesc = StreamParser(), [], len(stream), len(stream)
    for data in (stream, b""):
        parser.feed(data)
        while (event := parser.next_event()) is not NEED_DATA:
            offsets.append(event.offset)
            if isinstance(event, DeviceState) and not event.early:
                state, vmdesc = event.offset, event.offset + event.sections[-1].end
    return Sizes(offsets[2], state, vmdesc, len(stream), leg.first_passed[BACKWARD], leg.passed[FORWARD])


def place(phase: str, sizes: Sizes, rng: Random, passed: list[int], first_passed: list[int]) -> Place:
    """Choose a byte of a phase; `passed` and `first_passed` are a leg's of now."""
    match phase:
        case "header":
            return Place(FORWARD, rng.randrange(sizes.header), of_first=True)
        case "RAM" | "advised":
            end = sizes.state if phase == "RAM" else 300_000
            return Place(FORWARD, rng.randrange(sizes.header, end), of_first=True)
        case "device state":
            return Place(FORWARD, rng.randrange(sizes.state, sizes.vmdesc), of_first=True)
        case "vmdesc":
            return Place(FORWARD, rng.randrange(sizes.vmdesc, sizes.end), of_first=True)
        case "SHUT":
            return Place(BACKWARD, rng.randrange(sizes.back), of_first=True)
        case "channels":
            return Place(FORWARD, rng.randrange(sizes.total), of_first=False)
        case "package":
            return Place(FORWARD, first_passed[FORWARD] + rng.randrange(_PACKAGE), of_first=True)
        case "postcopy" | "recovery":
            begin = _PACKAGE if phase == "postcopy" else 0
            return Place(FORWARD, passed[FORWARD] + begin + rng.randrange(sizes.total // 2), of_first=False)
        case _:
            return Place(BACKWARD, passed[BACKWARD] + rng.randrange(_REQUESTS), of_first=False)
