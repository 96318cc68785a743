"""One migration: a source's connection, the destination's, and the two pumps between them."""

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from formats.errors import FormatError
from formats.hold import DEFAULT_DEVICE_STATE_LIMIT
from formats.return_path import ReturnPathListener
from proxy.channel import Channel
from proxy.errors import PeerError, ProxyError, RefusedError
from proxy.judge import Judge
from proxy.pumps import together
from proxy.report import Report
from proxy.rewriter import Rewriter
from proxy.route import Route

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from formats.events import Raw
    from proxy.connection import Connection


_BUFFER: Final = 1 << 20
_RETURN_BUFFER: Final = 64 << 10

DEFAULT_VMDESC_WAIT: Final = 1.0
"""Seconds to wait for a vmdesc after what looks like the end; sources send it in the same breath, or never."""

_MOST_WAITS: Final = 10
"""A source that is silent for so many waits in a row has sent all it has; its guest is stopped until it is answered."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What every migration through one listener has in common.

    Attributes:
        route: How the destination is reached.
        judge: What it accepts, and what the operator vouches for.
        allow_no_return_path: Whether sources without a return path may come.
        device_state_limit: Bytes of device state held at most.
        vmdesc_wait: Seconds to wait for a vmdesc after what looks like the end.
    """

    route: Route
    judge: Judge
    allow_no_return_path: bool = False
    device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT
    vmdesc_wait: float = DEFAULT_VMDESC_WAIT


class Session:
    """Carries one migration from an accepted connection to the destination.

    However it ends, both connections are closed: cleanly when both peers ended cleanly, with a reset otherwise.

    Raises RefusedError when the connection may go nowhere; see `Route.destination_of`.

    Attributes:
        dialled: Set when the main channel has reached the destination; other channels may follow then.
    """

    def __init__(self, config: SessionConfig, source: "Connection") -> None:
        self.dialled = trio.Event()
        self._config = config
        self._source = source
        self._address = config.route.destination_of(source)
        self._made: Connection | None = None
        self._rewriter = Rewriter(
            config.judge,
            live=True,
            allow_no_return_path=config.allow_no_return_path,
            device_state_limit=config.device_state_limit,
        )
        self._listener = ReturnPathListener()
        self._all_sent = trio.Event()
        self._scope = trio.CancelScope()
        self._lost: PeerError | None = None
        self._channels: set[Channel] = set()
        self._destination_ended = False
        self._buffer = memoryview(bytearray(_BUFFER))
        self._received: int | None = 0

    @property
    def key(self) -> tuple[str, str]:
        """What the connections of one migration have in common: the source's host, and where they go on to."""
        return self._source.host, str(self._address)

    @property
    def report(self) -> Report:
        """What came of it, or has so far."""
        return self._rewriter.report

    @property
    def opening(self) -> memoryview:
        """What the source sent first, once `wait_begin` has returned True."""
        return self._buffer[: self._received or 0]

    async def carry_channel(
        self, source: "Connection", opening: bytes, dial: "Callable[[], Awaitable[Connection]]"
    ) -> None:
        """Carry a multifd channel of this migration to its end; if it is lost, so is the migration."""
        channel = Channel(dial, source, self._all_sent)
        self._channels.add(channel)
        self.report.channels += 1
        try:
            await channel.run(opening)
        except PeerError as error:
            self._lost = PeerError(error.peer, f"lost a multifd channel: {error}")
            self._scope.cancel()
        finally:
            self._channels.discard(channel)

    async def wait_begin(self) -> bool:
        """Wait for the source's first bytes; False when it leaves without a word, as a port scan does."""
        try:
            self._received = await self._receive()
        except PeerError:
            self._received = 0
        if not self._received:
            self._source.close()
        return bool(self._received)

    async def run(self) -> None:
        """Carry the migration that began to its end; `report` says how it went. Only cancellation is raised.

        The destination is not dialled before the source has shown that it sends a migration: a QEMU that waits for one
        takes a single connection, and exits when that brings something else.
        """
        destination: Connection | None = None
        clean = False
        try:
            pieces = await self._beginning()
            destination = await self.dial()
            self.dialled.set()
            await self._pump(destination, pieces)
            clean = True
        except (FormatError, RefusedError):
            pass  # the rewriter has put it into the report
        except ProxyError as error:
            self.report.failed(self._explained(error))
        except Exception as error:
            # One migration's trouble must not end the others.
            traceback.print_exc()
            self.report.failed(f"internal error, please report it: {error!r}")
        except BaseException:
            self.report.failed("the proxy was stopped")
            raise
        finally:
            for channel in self._channels:
                channel.end(clean=clean)
            for connection in (self._source, destination):
                if connection is None:
                    continue
                if clean:
                    connection.close()
                else:
                    connection.reset()

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
        with self._scope:
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
            received = await self._receive()
            waits = waits + 1 if received is None else 0
            if received is None:
                await self._release(destination, rewriter.vmdesc_overdue(last_word=waits == _MOST_WAITS))
            elif received:
                await self._release(destination, rewriter.feed(self._buffer[:received]))
            else:
                if self._destination_ended and not rewriter.complete:
                    raise PeerError("destination", "gave up before it had the guest; its own log says why")
                await self._release(destination, rewriter.end())
                await destination.finish()
                return

    async def _receive(self) -> int | None:
        """Receive into the buffer from the source; None when only a vmdesc is missing and does not come."""
        wait = self._config.vmdesc_wait if self._rewriter.awaiting_vmdesc else float("inf")
        received: int | None = None
        with trio.move_on_after(wait):
            received = await self._source.receive(self._buffer)
        return received

    async def _release(self, destination: "Connection", pieces: "list[Raw]") -> None:
        for piece in pieces:
            await destination.send(piece)
            self.report.bytes_out += len(piece)
        if self._rewriter.complete:
            self._all_sent.set()

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
            said = "saying nothing" if self._listener.shut is None else f"with error {self._listener.shut}"
            raise PeerError("destination", f"ended {said}")

    def _explained(self, error: ProxyError) -> str:
        got_all = self.dialled.is_set() and self._rewriter.complete
        if isinstance(error, PeerError) and error.peer == "destination" and got_all and self._listener.shut != 0:
            return (
                f"the destination got the whole stream and did not take the guest: {error}; its own log says why, and "
                "the source goes on"
            )
        return str(error)
