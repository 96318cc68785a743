"""A leg of a migration: the source's connection, the destination's, and the two pumps between them.

A migration has one; a postcopy migration that was interrupted has another for each time that it is recovered.
"""

import time
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from formats.channels.return_path import ReturnPathListener
from proxy.errors import PeerError
from proxy.net.aside import aside
from proxy.net.looking import Lookout
from proxy.net.pumps import pass_on, together
from proxy.old_source import let_wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.frame.event import Raw
    from proxy.live.session_config import SessionConfig
    from proxy.live.turns import Turns
    from proxy.net.connection import Connection
    from proxy.rewriter.rewriter import Rewriter

_RETURN_BUFFER: Final = 64 << 10

_SMALL: Final = 256 << 10
_GATHER: Final = 0.001
"""Seconds in which more zero pages gather where few have come.

QEMU sends them in pieces of 32 KiB, which stand for 14 MiB of memory. Those that nobody takes at once it sends in
longer ones, with less work for itself, for the proxy and for the destination.
"""

_MUCH_HELD: Final = 2 << 20
"""Bytes of device state whose sections may take longer to find than others should wait: that of 200 vCPUs."""

_LOOK_FOR_IDLE: Final = 1.0

_MOST_WAITS: Final = 10
"""A source that is silent for so many waits in a row has sent all it has; its guest is stopped until it is answered."""


class Leg:
    """Carries a stream from a source to a destination, through the rewriter, and the return path back as it is."""

    def __init__(
        self,
        source: "Connection",
        destination: "Connection",
        rewriter: "Rewriter",
        *,
        buffer: memoryview,
        config: "SessionConfig",
        turns: "Turns",
        on_release: "Callable[[], None]",
    ) -> None:
        """Make a leg.

        Args:
            source: The source's connection.
            destination: The destination's.
            rewriter: Says what may go on.
            buffer: What is received into.
            config: How long nothing may come, and more.
            turns: Whose turn it is to judge.
            on_release: Is called whenever bytes have gone on to the destination.
        """
        self._source = source
        self._destination = destination
        self._rewriter = rewriter
        self._buffer = buffer
        self._config = config
        self._turns = turns
        self._on_release = on_release
        self._times = rewriter.report.times
        self._listener = ReturnPathListener()
        self._destination_ended = False
        self._works_aside = False
        self._scope = trio.CancelScope()
        self._lost: PeerError | None = None

    @property
    def shut(self) -> int | None:
        """What the destination's SHUT said; None when none has come."""
        return self._listener.shut

    async def run(self, pieces: "list[Raw]") -> None:
        """Run both directions, until they end or the leg is lost.

        Args:
            pieces: What goes on first.

        Raises:
            PeerError: A connection broke, the leg was lost, or the destination did not confirm that it has the guest.
            Also what `Rewriter.feed` raises.
        """
        problem: Exception | None = None
        with self._scope, Lookout(self._source, self._destination) as lookout:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_idle)
                try:
                    await together(self._forward(pieces, lookout), self._backward())
                except Exception as error:
                    problem = error
                nursery.cancel_scope.cancel()
        problem = problem or self._lost
        if problem is not None:
            raise problem
        self._check_confirmed()

    def lose(self, error: PeerError) -> None:
        """End the pumps with an error."""
        self._lost = error
        self._scope.cancel()

    async def _watch_idle(self) -> None:
        """Lose the leg when nothing passes for too long; not while the QEMUs wait for each other, nor in postcopy."""
        rewriter, limits = self._rewriter, self._config.limits
        while True:
            await trio.sleep(_LOOK_FOR_IDLE)
            if rewriter.complete or rewriter.opaque or self._works_aside:
                continue
            option, limit = ("--idle-state", limits.idle_state) if rewriter.holds else ("--idle-ram", limits.idle_ram)
            if limit is not None and time.perf_counter() - self._times.received > limit:
                self.lose(PeerError("source", f"sent nothing that could go on for {limit:g} seconds ({option})"))

    async def _forward(self, pieces: "list[Raw]", lookout: Lookout) -> None:
        """Source to destination, through the rewriter."""
        rewriter = self._rewriter
        await self._release(pieces)
        waits = 0
        while True:
            if rewriter.awaiting_vmdesc and not waits:
                # The guest stands; what the footers leave no doubt about need not wait for a vmdesc.
                await self._release(await self._worked(rewriter.without_vmdesc))
            if rewriter.opaque:
                await self._pass_on()
                received: int | None = 0
            else:
                received = await self._receive(lookout)
            if received:
                self._times.received = time.perf_counter()
            waits = waits + 1 if received is None else 0
            if received is None:
                overdue = partial(rewriter.vmdesc_overdue, last_word=waits == _MOST_WAITS)
                await self._release(await self._worked(overdue))
            elif received:
                await self._release(await self._feed(self._buffer[:received], lookout))
                if received < _SMALL and rewriter.amid_small_records:
                    await trio.sleep(_GATHER)
            else:
                if self._destination_ended and not rewriter.complete:
                    raise PeerError("destination", "gave up before it had the guest; its own log says why")
                await self._release(await self._worked(rewriter.end))
                await self._destination.finish()
                return

    async def _pass_on(self) -> None:
        """Pass on all that is still to come, which is not looked at."""
        report = self._rewriter.report

        def count(length: int) -> None:
            report.bytes_in += length
            report.bytes_out += length

        await pass_on(self._source, self._destination, count)

    async def _receive(self, lookout: Lookout) -> int | None:
        """Receive into the buffer; None when a vmdesc that seems to be missing is overdue."""
        if not self._rewriter.awaiting_vmdesc:
            return await lookout.receive(self._buffer, may_look=not self._rewriter.holds)
        received: int | None = None
        with trio.move_on_after(self._config.vmdesc_wait):
            received = await self._source.receive(self._buffer)
        return received

    async def _feed(self, data: memoryview, lookout: Lookout) -> "list[Raw]":
        """Feed what came; return what may go on, unless that has been moved on by the kernel."""
        nothing_held = not self._rewriter.held
        try:
            pieces = await self._worked(partial(self._rewriter.feed, data))
            if lookout.looked_at and nothing_held and _are_parts(pieces, data):
                length = sum(map(len, pieces))
                if await lookout.move_on(length):
                    self._rewriter.report.bytes_out += length
                    pieces = []
        finally:
            await lookout.take_rest()
        return pieces

    async def _worked(self, work: "Callable[[], list[Raw]]") -> "list[Raw]":
        """Have the rewriter work on what came. Other migrations need not wait long for what it takes its time for."""
        if self._rewriter.amid_part:
            return work()
        if self._rewriter.held > _MUCH_HELD:
            return await self._aside("the device state", work)
        return await self._turns.take(work)

    async def _aside(self, what: str, work: "Callable[[], list[Raw]]") -> "list[Raw]":
        """Work in a thread; other migrations go on."""
        self._works_aside = True
        try:
            return await aside(what, work, self._config.limits.idle_state)
        finally:
            self._works_aside = False

    async def _release(self, pieces: "list[Raw]") -> None:
        times = self._times
        if self._rewriter.holds:
            times.holds()
        elif times.holding_since is not None and not self._rewriter.must_judge:
            self._let_go()
        await self._send(pieces)
        while self._rewriter.must_judge:
            with times.trying():
                pieces = await self._aside("the verdict", self._rewriter.judge_now)
            self._let_go()
            await self._send(pieces)
        self._on_release()

    def _let_go(self) -> None:
        """Let the device state go on, unless the source gave up meanwhile: then it has, or had, the one guest."""
        self._times.let_go()
        if self._rewriter.return_path and self._source.has_ended():
            raise PeerError("source", "gave up while its device state was held here; nothing of that went on")

    async def _send(self, pieces: "list[Raw]") -> None:
        for piece in pieces:
            await self._destination.send(piece)
            self._rewriter.report.bytes_out += len(piece)

    async def _backward(self) -> None:
        """Destination to source: the return path, passed on as it comes."""
        with memoryview(bytearray(_RETURN_BUFFER)) as view:
            while received := await self._destination.receive(view):
                await self._source.send(view[:received])
                self._listener.listen(view[:received])
        self._destination_ended = True
        if self._listener.shut is None and self._rewriter.source_waits:
            await let_wait(self._rewriter.report.machine)
        await self._source.finish()

    def _check_confirmed(self) -> None:
        """With a return path, a migration is done when the destination says so, not when its stream was sent."""
        if self._rewriter.return_path and self._listener.shut != 0:
            raise PeerError("destination", self._listener.ending)


def _are_parts(pieces: "list[Raw]", data: memoryview) -> bool:
    """Tell whether nothing but parts of what was fed goes on; where nothing was held before, they are its beginning."""
    return all(isinstance(piece, memoryview) and piece.obj is data.obj for piece in pieces)
