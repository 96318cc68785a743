"""A precopy migration through the proxy: source, proxy, destination, what is under way between them, and faults.

The steps are those of QEMU's `migration_completion`, `source_return_path_thread`, `process_incoming_migration_bh` (the
destination runs its guest, and says SHUT after that: `migration_incoming_state_destroy`), and of `proxy.live.session`.
A stream is `ram`, then `state`; whatever comes twice on the wire makes no new order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Source(Enum):
    """The source's QEMU."""

    BEGINS = auto()
    SENDS = auto()
    """It has sent memory; its guest runs."""
    WAITS = auto()
    """It has sent all, its guest stands, and it waits for SHUT."""
    RUNS = auto()
    """The migration failed, and its guest runs on."""
    COMPLETED = auto()
    """It has given its guest up."""
    DEAD = auto()


class Proxy(Enum):
    """The proxy's session."""

    PASSES = auto()
    HOLDS = auto()
    """It has the device state, and judges it."""
    RELEASED = auto()
    DONE = auto()
    """It has passed SHUT on."""
    GONE = auto()
    """It has reset both connections, or died."""


class Destination(Enum):
    """The destination's QEMU."""

    LOADS = auto()
    RUNS = auto()
    SAID = auto()
    """Its guest runs, and it has said SHUT."""
    PAUSED = auto()
    """Started with -S: it has the guest, has said SHUT, and waits for `cont`."""
    EXITED = auto()
    DEAD = auto()


Way = tuple[str, ...] | None
"""What is under way in one direction of a connection, the oldest first, `end` being its clean end; None: reset."""


@dataclass(frozen=True)
class State:
    """All of it.

    Attributes:
        to_proxy: From the source to the proxy.
        to_destination: From the proxy on.
        back: From the destination to the proxy.
        home: From the proxy to the source.
        excused: Whether a fault killed a QEMU that alone had the guest.
        faults: How many there were.
        released_first: Whether the device state had been passed on, and SHUT not come home, before the first fault.
    """

    source: Source = Source.BEGINS
    proxy: Proxy = Proxy.PASSES
    destination: Destination = Destination.LOADS
    to_proxy: Way = ()
    to_destination: Way = ()
    back: Way = ()
    home: Way = ()
    excused: bool = False
    faults: int = 0
    released_first: bool = False


RUNNING = frozenset({Destination.RUNS, Destination.SAID})
OWNS = frozenset({Source.BEGINS, Source.SENDS, Source.WAITS, Source.RUNS})
SENDING = frozenset({Source.BEGINS, Source.SENDS, Source.WAITS})
CARRYING = frozenset({Proxy.PASSES, Proxy.HOLDS, Proxy.RELEASED})


@dataclass(frozen=True)
class Precopy:
    """The model, and what may be otherwise in it.

    Attributes:
        most_faults: How many faults there may be.
        return_path: Whether the source waits for SHUT; without, it has given its guest up when all is sent.
        coordinated: Whether the destination is started with -S, and told to `cont` once the source has completed.
        refuses: Whether the judge may refuse.
        mistake: A mistake of the proxy, by its name, of those that the walk must find.
    """

    most_faults: int = 2
    return_path: bool = True
    coordinated: bool = False
    refuses: bool = True
    mistake: str | None = None

    def start(self) -> State:
        """See `Model.start`."""
        return State()

    def wrong(self, state: State, *, over: bool) -> str | None:
        """See `Model.wrong`."""
        if state.destination in RUNNING and state.source is Source.RUNS:
            return "two guests run"
        nowhere = state.source not in OWNS and state.destination not in RUNNING | {Destination.PAUSED}
        if over and nowhere and not state.excused:
            return "no guest is left"
        if over and (state.source in SENDING or state.destination is Destination.PAUSED) and not state.excused:
            return "it hangs"
        return None

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """See `Model.steps`."""
        yield from self._source(state)
        yield from self._proxy(state)
        yield from self._destination(state)
        if state.faults < self.most_faults:
            for name, then in self._faults(state):
                in_window = state.released_first or (not state.faults and state.proxy in {Proxy.RELEASED, Proxy.DONE})
                yield f"FAULT: {name}", replace(then, faults=state.faults + 1, released_first=in_window)

    def _source(self, state: State) -> Iterator[tuple[str, State]]:
        if state.source not in SENDING:
            return
        if state.home is None or state.to_proxy is None or state.home[:1] == ("end",):
            yield "source: the connection ended; its guest runs on", replace(state, source=Source.RUNS, to_proxy=None)
            return
        if state.source is Source.BEGINS:
            yield "source: sends memory", replace(state, source=Source.SENDS, to_proxy=(*state.to_proxy, "ram"))
        elif state.source is Source.SENDS:
            then = Source.WAITS if self.return_path else Source.COMPLETED
            sent = (*state.to_proxy, "state") if self.return_path else (*state.to_proxy, "state", "end")
            yield "source: stops its guest, sends the device state", replace(state, source=then, to_proxy=sent)
        elif state.home[:1] == ("shut",):
            home = state.home[1:]
            yield "source: hears SHUT 0, and has completed", replace(state, source=Source.COMPLETED, home=home)

    def _proxy(self, state: State) -> Iterator[tuple[str, State]]:
        if state.proxy not in CARRYING:
            return
        if None in (state.to_proxy, state.to_destination, state.back, state.home) or state.back == ("end",):
            ended = replace(state, proxy=Proxy.GONE, to_proxy=None, to_destination=None, back=None, home=None)
            if self.mistake == "says SHUT when the destination broke" and state.home is not None:
                ended = replace(ended, home=(*state.home, "shut"), to_proxy=())
            yield "proxy: a connection broke; resets the other", ended
            return
        assert state.to_proxy is not None
        assert state.to_destination is not None
        assert state.back is not None
        assert state.home is not None
        if state.proxy is Proxy.PASSES and state.to_proxy[:1] == ("ram",):
            on = (*state.to_destination, "ram")
            yield "proxy: passes memory on", replace(state, to_proxy=state.to_proxy[1:], to_destination=on)
        if state.proxy is Proxy.PASSES and state.to_proxy[:1] == ("state",):
            held = replace(state, proxy=Proxy.HOLDS, to_proxy=state.to_proxy[1:])
            if self.mistake == "says SHUT before the destination did":
                held = replace(held, home=(*state.home, "shut"))
            yield "proxy: holds the device state", held
        if state.proxy is Proxy.HOLDS:
            on = (*state.to_destination, "state")
            yield "proxy: judges it, and passes it on", replace(state, proxy=Proxy.RELEASED, to_destination=on)
            if self.refuses:
                refused = replace(state, proxy=Proxy.GONE, to_proxy=None, to_destination=None, back=None, home=None)
                if self.mistake == "passes on what it refuses":
                    refused = replace(refused, to_destination=on)
                yield "proxy: judges it, and refuses it", refused
        if state.proxy is Proxy.RELEASED and state.back[:1] == ("shut",):
            said = replace(state, proxy=Proxy.DONE, back=state.back[1:], home=(*state.home, "shut"))
            yield "proxy: passes SHUT on", said

    def _destination(self, state: State) -> Iterator[tuple[str, State]]:
        there = state.to_destination
        if state.destination is Destination.LOADS:
            if there is None or there[:1] == ("end",):
                yield (
                    "destination: the stream broke off; exits",
                    replace(state, destination=Destination.EXITED, back=None),
                )
            elif there[:1] == ("ram",):
                yield "destination: loads memory", replace(state, to_destination=there[1:])
            elif there[:1] == ("state",) and self.coordinated:
                back = None if state.back is None else (*state.back, "shut")
                paused = replace(state, destination=Destination.PAUSED, to_destination=there[1:], back=back)
                yield "destination: loads the devices, says SHUT 0, and waits for cont", paused
            elif there[:1] == ("state",):
                runs = replace(state, destination=Destination.RUNS, to_destination=there[1:])
                yield "destination: loads the devices, and runs its guest", runs
        elif state.destination is Destination.RUNS:
            back = None if state.back is None else (*state.back, "shut")
            yield "destination: says SHUT 0", replace(state, destination=Destination.SAID, back=back)
        elif state.destination is Destination.PAUSED and state.source is Source.COMPLETED:
            yield "coordinator: the source has completed; cont", replace(state, destination=Destination.SAID)
        elif state.destination is Destination.PAUSED and state.source in {Source.RUNS, Source.DEAD}:
            left = replace(state, destination=Destination.EXITED, excused=state.excused)
            if state.source is Source.DEAD:
                left = replace(state, destination=Destination.SAID)
            yield "coordinator: the source has not completed; decides", left

    def _faults(self, state: State) -> Iterator[tuple[str, State]]:
        if state.source in OWNS:
            alone = state.destination not in RUNNING | {Destination.PAUSED}
            dead = replace(state, source=Source.DEAD, to_proxy=None, home=None, excused=state.excused or alone)
            yield "the source's QEMU dies", dead
        if state.source in SENDING:
            yield "migrate_cancel", replace(state, source=Source.RUNS, to_proxy=None, home=None)
        if state.proxy is not Proxy.GONE:
            yield (
                "the proxy dies, and what it had sent is lost",
                replace(state, proxy=Proxy.GONE, to_proxy=None, to_destination=None, back=None, home=None),
            )
            there, home = (None if way is None else (*way, "end") for way in (state.to_destination, state.home))
            yield (
                "the proxy dies, and what it had sent still arrives",
                replace(state, proxy=Proxy.GONE, to_proxy=None, back=None, to_destination=there, home=home),
            )
        if state.to_proxy is not None or state.home is not None:
            yield "the source's connection is cut", replace(state, to_proxy=None, home=None)
        if state.to_destination is not None or state.back is not None:
            yield "the destination's connection is cut", replace(state, to_destination=None, back=None)
        if state.destination in RUNNING | {Destination.LOADS, Destination.PAUSED}:
            # Once it has said SHUT, the guest is its own: it dies with it, as it does when the source has heard.
            alone = state.destination in {Destination.SAID, Destination.PAUSED} or state.source not in OWNS
            dead = replace(
                state, destination=Destination.DEAD, to_destination=None, back=None, excused=state.excused or alone
            )
            yield "the destination's QEMU dies", dead
