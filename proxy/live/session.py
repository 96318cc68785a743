"""One migration: a source's connection, the destination's, and the two pumps between them."""

import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from formats.channels.return_path import ReturnPathListener, shut
from formats.errors import FormatError
from formats.stream.package import is_recovery
from proxy.errors import PeerError, ProxyError, RefusedError
from proxy.live.channel import Channel, swallow
from proxy.net.address import FdAddress, StdioAddress
from proxy.net.pumps import pass_on, together
from proxy.report import Report
from proxy.rewriter import Rewriter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from formats.frame.event import Raw
    from proxy.live.session_config import SessionConfig
    from proxy.net.connection import Connection

_BUFFER: Final = 1 << 20
_RETURN_BUFFER: Final = 64 << 10

_SMALL: Final = 256 << 10
_GATHER: Final = 0.001
"""Seconds in which more zero pages gather where few have come.

QEMU sends them in pieces of 32 KiB, which stand for 14 MiB of memory. Those that nobody takes at once it sends in
longer ones, with less work for itself, for the proxy and for the destination.
"""

_MOST_WAITS: Final = 10
"""A source that is silent for so many waits in a row has sent all it has; its guest is stopped until it is answered."""

_KEEP_IT: Final = 1
"""The value of a SHUT that has the source keep its guest; any but 0 does."""

_GIVE_BACK_PATIENCE: Final = 30.0
_LET_BEGIN_PATIENCE: Final = 1.0

_PAUSED: Final = (
    "the migration is paused in postcopy, the guest's memory on both hosts; it can be recovered, through this proxy or "
    "another: migrate-recover on the destination, then migrate with resume on the source"
)


class Session:
    """Carries one migration from an accepted connection to the destination.

    However it ends, both connections are closed: cleanly when both peers ended cleanly, with a reset otherwise. In
    postcopy a broken connection does not end it: it pauses, as both QEMUs do, until the source comes back.

    Raises RefusedError when the connection may go nowhere; see `Route.destination_of`.

    Attributes:
        key: The source's host and the destination; all connections of one migration have the same.
        dialled: Set when the main channel has reached the destination; other channels may follow then.
        advised: Set when the source has announced that it may go over to postcopy.
        guest: The UUID that its multifd channels name; None before the first.
        on_change: Called when `dialled`, `advised`, `wants_preempt` or `recoverable` may have changed.
        on_pause: Takes one line for the operator when the migration pauses.
    """

    def __init__(self, config: "SessionConfig", source: "Connection") -> None:
        self._address = config.route.destination_of(source)
        self.key = (source.host, str(self._address))
        self.dialled = trio.Event()
        self.advised = trio.Event()
        self.guest: bytes | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.on_pause: Callable[[str], None] = lambda _line: None
        self._config = config
        self._source = source
        self._destination: Connection | None = None
        self._made: Connection | None = None
        self._rewriter = Rewriter(
            config.judge,
            live=True,
            allow_no_return_path=config.allow_no_return_path,
            device_state_limit=config.device_state_limit,
            source=config.source,
        )
        self._listener = ReturnPathListener()
        self._all_sent = trio.Event()
        self._scope = trio.CancelScope()
        self._lost: PeerError | None = None
        self._channels: set[Channel] = set()
        self._has_preempt = False
        self._destination_ended = False
        self._buffer = memoryview(bytearray(_BUFFER))
        self._received: int | None = 0
        self._left = False
        self._paused: trio.CancelScope | None = None
        self._returned: tuple[Connection, bytes] | None = None
        self._last_call = False

    @property
    def report(self) -> Report:
        """What came of it, or has so far."""
        return self._rewriter.report

    @property
    def opening(self) -> memoryview:
        """What the source sent first, once `wait_begin` has returned True."""
        return self._buffer[: self._received or 0]

    @property
    def gone(self) -> bool:
        """Whether the source left without a word."""
        return self._left

    @property
    def recoverable(self) -> bool:
        """Whether the source may come back to it on a new connection."""
        return self._rewriter.postcopy

    @property
    def wants_preempt(self) -> bool:
        """Whether a connection that says nothing may be its postcopy-preempt channel."""
        return self.dialled.is_set() and self.advised.is_set() and not self._has_preempt and self._paused is None

    # --- what the relay brings

    async def carry_channel(
        self, source: "Connection", opening: bytes, dial: "Callable[[], Awaitable[Connection]]"
    ) -> None:
        """Carry a multifd channel of this migration to its end; if it is lost, so is the migration."""
        channel = Channel(dial, source, self._all_sent)
        self._channels.add(channel)
        self.report.channels += 1
        try:
            await channel.run(opening)
        except ProxyError as error:
            self._lose(PeerError(_peer_of(error), f"lost a multifd channel: {error}"))
        finally:
            self._channels.discard(channel)

    async def carry_preempt(self, source: "Connection", dial: "Callable[[], Awaitable[Connection]]") -> bool:
        """Carry the postcopy-preempt channel to its end; return whether the destination took it as one."""
        channel = Channel(dial, source, self._all_sent)
        self._channels.add(channel)
        self._has_preempt = True
        self.report.channels += 1
        try:
            await channel.run(b"")
        except ProxyError as error:
            if channel.dialled:
                self._lose(PeerError(_peer_of(error), f"lost the preempt channel: {error}"))
        finally:
            self._channels.discard(channel)
            if not channel.dialled:
                self._has_preempt = False
                self.report.channels -= 1
        return channel.dialled

    def take_back(self, source: "Connection", opening: bytes) -> None:
        """Go on, in postcopy, with a new connection from the source; the one before is dead, noticed or not."""
        if self._returned is not None:
            self._returned[0].reset()
        self._returned = source, opening
        if self._paused is None:
            self._lose(PeerError("source", "came back on a new connection"))
        else:
            self._paused.cancel()

    def last_call(self) -> None:
        """Wait for no recovery any more."""
        self._last_call = True
        if self._paused is not None:
            self._paused.cancel()

    async def wait_begin(self) -> bool:
        """Wait for the source's first bytes; False when it leaves without a word, as a port scan does."""
        try:
            self._received = await self._receive()
        except PeerError:
            self._received = 0
        if not self._received:
            self._left = True
            self._source.close()
        return bool(self._received)

    # --- the migration

    async def run(self) -> None:
        """Carry the migration that began to its end; `report` says how it went. Only cancellation is raised.

        The destination is not dialled before the source has shown that it sends a migration: a QEMU that waits for one
        takes a single connection, and exits when that brings something else.
        """
        clean = False
        try:
            await self._carry()
            clean = True
        except (FormatError, RefusedError):
            # The rewriter has put it into the report.
            await self._let_begin()
            clean = await self._give_back()
        except ProxyError as error:
            self.report.failed(self._explained(error))
            clean = await self._give_back()
        except Exception as error:
            # One migration's trouble must not end the others.
            traceback.print_exc()
            self.report.failed(f"internal error, please report it: {error!r}")
            clean = await self._give_back()
        except BaseException:
            self.report.failed("the proxy was stopped")
            raise
        finally:
            self._close(clean=clean)
            for channel in self._channels:
                channel.end(clean=clean)
            if self._returned is not None:
                self._returned[0].reset()

    async def _carry(self) -> None:
        """Carry it on as many connections as it takes."""
        leg = self._first_leg
        if is_recovery(self.opening):
            # Its vCPUs were judged before, by a proxy that is gone; what comes now is memory.
            self._rewriter.recover()
            leg, self._returned = self._next_leg, (self._source, bytes(self.opening))
        while True:
            try:
                await leg()
            except PeerError as error:
                if not self._rewriter.postcopy or self._listener.shut is not None:
                    raise
                await self._pause(error)
                leg = self._next_leg
            else:
                return

    async def _first_leg(self) -> None:
        pieces = await self._beginning()
        self._destination = await self.dial()
        self.dialled.set()
        self.on_change()
        await self._pump(self._destination, pieces)

    async def _next_leg(self) -> None:
        """Go on where a postcopy migration was interrupted."""
        assert self._returned is not None
        (self._source, opening), self._returned = self._returned, None
        self._listener = ReturnPathListener()
        self._destination_ended = False
        self._destination = await self.dial()
        self.dialled.set()
        self.advised.set()
        self.on_change()
        self.report.recoveries += 1
        await self._pump(self._destination, self._rewriter.feed(opening))

    async def _pause(self, error: PeerError) -> None:
        """Wait for the source to come back, or for the last call."""
        for channel in self._channels:
            channel.cut()
        self._close(clean=False)
        self._has_preempt = False
        if self._returned is None:
            self.on_pause(f"{error}; {_PAUSED}")
            with trio.CancelScope() as self._paused:
                if self._last_call:
                    self._paused.cancel()
                await trio.sleep_forever()
            self._paused = None
        if self._returned is None:
            raise PeerError(error.peer, f"{str(error).removeprefix(f'the {error.peer} ')}; {_PAUSED}")

    async def _let_begin(self) -> None:
        """See that the destination can notice that it gets no guest: bring it a preempt channel, if it has none yet.

        QEMU 7.2 reads nothing before it has that channel, and would wait for ever; others need it no more, or listen no
        more. Source: QEMU 7.2 `migration/migration.c` (`migration_ioc_process_incoming`).
        """
        lacks_it = self.dialled.is_set() and self._rewriter.postcopy_advised and not self._has_preempt
        if lacks_it and not isinstance(self._address, FdAddress | StdioAddress):
            with trio.move_on_after(_LET_BEGIN_PATIENCE), suppress(PeerError):
                (await self.dial()).close()

    async def _give_back(self) -> bool:
        """Have a source that has gone over to postcopy keep its guest; return whether that was to be done.

        A mere reset would leave it paused, waiting for a recovery that no destination can give. So it may send all its
        memory, and when it then asks whether the destination has the guest, the answer is no. Source: QEMU
        `migration/migration.c` (`source_return_path_thread`, `migration_detect_error`, `migration_completion`).
        """
        if not self._rewriter.source_waits_in_postcopy:
            return False
        if self._destination is not None:
            self._destination.reset()
        for channel in self._channels:
            channel.swallow()
        try:
            await self._hear_out()
            await self._source.send(shut(_KEEP_IT))
        except (PeerError, FormatError):
            return False
        await swallow(self._source, _GIVE_BACK_PATIENCE)
        self.report.note(
            "the source was told to keep its guest; if it is left stopped there, 'cont' lets it go on; with --source, "
            "what can be known ahead is refused before the guest stops"
        )
        return True

    async def _hear_out(self) -> None:
        """Take what the source sends until it has said all."""
        ended = self._rewriter.abandon()
        while not ended:
            length = 0
            with trio.move_on_after(_GIVE_BACK_PATIENCE):
                length = await self._source.receive(self._buffer)
            if not length:
                raise PeerError("source", "went away")
            ended = self._rewriter.has_ended(self._buffer[:length])

    def take(self, destination: "Connection") -> None:
        """Take a connection to the destination that has been made already, in place of the first that would be."""
        self._made = destination

    def reject(self) -> None:
        """Reset the source's connection, and what was made for it: nothing becomes of them."""
        self._source.reset()
        if self._made is not None:
            self._made.reset()

    async def dial(self) -> "Connection":
        """Connect to the destination.

        Raises:
            PeerError: It cannot be reached.
        """
        made, self._made = self._made, None
        return made or await self._config.route.dial(self._address)

    def _lose(self, error: PeerError) -> None:
        """End the pumps."""
        self._lost = error
        self._scope.cancel()

    def _close(self, *, clean: bool) -> None:
        for connection in (self._source, self._destination):
            if connection is not None and clean:
                connection.close()
            elif connection is not None:
                connection.reset()

    async def _beginning(self) -> "list[Raw]":
        """Receive until the file header has been read; return what may go on."""
        received: int | None = self._received
        while received:
            pieces = self._rewriter.feed(self._buffer[:received])
            if pieces:
                return pieces
            received = await self._receive()
        return self._rewriter.end()

    async def _pump(self, destination: "Connection", pieces: "list[Raw]") -> None:
        """Run both directions, until they end or a channel is lost."""
        self._lost = None
        with trio.CancelScope() as self._scope:
            await together(self._forward(destination, pieces), self._backward(destination))
        if self._lost is not None:
            raise self._lost
        self._check_confirmed()

    async def _forward(self, destination: "Connection", pieces: "list[Raw]") -> None:
        """Source to destination, through the rewriter."""
        rewriter = self._rewriter
        await self._release(destination, pieces)
        waits = 0
        while True:
            if rewriter.awaiting_vmdesc and not waits:
                # The guest stands; what the footers leave no doubt about need not wait for a vmdesc.
                await self._release(destination, rewriter.without_vmdesc())
            if rewriter.opaque:
                await self._pass_on(destination)
                received: int | None = 0
            else:
                received = await self._receive()
            waits = waits + 1 if received is None else 0
            if received is None:
                await self._release(destination, rewriter.vmdesc_overdue(last_word=waits == _MOST_WAITS))
            elif received:
                await self._release(destination, rewriter.feed(self._buffer[:received]))
                if received < _SMALL and rewriter.amid_small_records:
                    await trio.sleep(_GATHER)
            else:
                if self._destination_ended and not rewriter.complete:
                    raise PeerError("destination", "gave up before it had the guest; its own log says why")
                await self._release(destination, rewriter.end())
                await destination.finish()
                return

    async def _pass_on(self, destination: "Connection") -> None:
        """Pass on all that is still to come, which is not looked at."""
        report = self.report

        def count(length: int) -> None:
            report.bytes_in += length
            report.bytes_out += length

        await pass_on(self._source, destination, count)

    async def _receive(self) -> int | None:
        """Receive into the buffer; None when a vmdesc that seems to be missing is overdue."""
        if not self._rewriter.awaiting_vmdesc:
            return await self._source.receive(self._buffer)
        received: int | None = None
        with trio.move_on_after(self._config.vmdesc_wait):
            received = await self._source.receive(self._buffer)
        return received

    async def _release(self, destination: "Connection", pieces: "list[Raw]") -> None:
        for piece in pieces:
            await destination.send(piece)
            self.report.bytes_out += len(piece)
        if self._rewriter.complete:
            self._all_sent.set()
        if self._rewriter.postcopy_advised and not self.advised.is_set():
            self.advised.set()
            self.on_change()

    async def _backward(self, destination: "Connection") -> None:
        """Destination to source: the return path, passed on as it comes."""
        with memoryview(bytearray(_RETURN_BUFFER)) as view:
            while received := await destination.receive(view):
                await self._source.send(view[:received])
                self._listener.listen(view[:received])
        self._destination_ended = True
        await self._source.finish()

    def _check_confirmed(self) -> None:
        """With a return path, a migration is done when the destination says so, not when its stream was sent."""
        if self._rewriter.return_path and self._listener.shut != 0:
            raise PeerError("destination", self._listener.ending)

    def _explained(self, error: ProxyError) -> str:
        if self._rewriter.postcopy and self._listener.shut is None:
            return str(error)
        got_all = self.dialled.is_set() and self._rewriter.complete
        if isinstance(error, PeerError) and error.peer == "destination" and got_all and self._listener.shut != 0:
            return (
                f"the destination got the whole stream and did not take the guest: {error}; its own log says why, and "
                "the source goes on"
            )
        return str(error)


def _peer_of(error: ProxyError) -> str:
    return error.peer if isinstance(error, PeerError) else "destination"
