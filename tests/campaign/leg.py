"""A leg of a migration's way that can break: it carries bytes, counts them, and does as it is told at one of them."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_CHUNK = 64 << 10
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


FORWARD = 0
BACKWARD = 1


class Place(NamedTuple):
    """A byte of what a leg carries.

    Attributes:
        way: `FORWARD` or `BACKWARD`.
        byte: Which one, from the migration's beginning.
        of_first: Whether it is counted in the first connection only.
    """

    way: int
    byte: int
    of_first: bool


@dataclass
class Leg:
    """Carries connections to a port.

    Attributes:
        port: Where it listens.
        targets: The ports that it carries them to, in turn; the last one for all that follow.
        passed: Bytes so far, forward and backward, of all connections since `begin`.
        first_passed: The same of the first connection, which is a migration's main one.
        at: The place at which `act` is called, once; None for never.
        act: What is done there; nothing passes meanwhile.
        slow: Seconds that each piece is held up.
        recorded: What the first connection brought forward; None where it is not kept.
    """

    port: int
    targets: list[int] = field(default_factory=list)
    passed: list[int] = field(default_factory=lambda: [0, 0])
    first_passed: list[int] = field(default_factory=lambda: [0, 0])
    at: Place | None = None
    act: Callable[[], Awaitable[None]] | None = None
    slow: float = 0.0
    recorded: bytearray | None = None
    _pairs: list[tuple[trio.SocketStream, trio.SocketStream]] = field(default_factory=list)
    _stalled: trio.Event | None = None

    def begin(self, *targets: int) -> None:
        """Make ready for another migration."""
        self.targets, self.passed, self.first_passed = list(targets), [0, 0], [0, 0]
        self.at, self.act, self.slow, self.recorded = None, None, 0.0, None
        self.go_on()
        self._pairs.clear()

    def reset(self) -> None:
        """Reset all connections, to both sides."""
        for pair in self._pairs:
            for stream in pair:
                with suppress(OSError):
                    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    stream.socket.close()
        self.go_on()

    def half_close(self) -> None:
        """End what goes forward, cleanly, and let the other direction be."""
        for _, far in self._pairs:
            with suppress(OSError):
                far.socket.shutdown(socket.SHUT_WR)

    def stall(self) -> None:
        """Carry nothing, as a black hole would, until `go_on`."""
        self._stalled = trio.Event()

    def go_on(self) -> None:
        """Carry on after a stall."""
        if self._stalled is not None:
            self._stalled.set()
            self._stalled = None

    async def serve(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Carry whatever connects."""
        while True:
            nursery.start_soon(self._carry_one, await listener.accept())

    async def _carry_one(self, near: trio.SocketStream) -> None:
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            try:
                target = self.targets.pop(0) if len(self.targets) > 1 else self.targets[0]
                far = await trio.open_tcp_stream("127.0.0.1", target)
            except OSError:
                near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                near.socket.close()
                return
            first = not self._pairs
            self._pairs.append((near, far))
            async with trio.open_nursery() as both:
                both.start_soon(self._carry, near, far, 0, first)
                both.start_soon(self._carry, far, near, 1, first)
            near.socket.close()
            far.socket.close()

    async def _carry(self, here: trio.SocketStream, there: trio.SocketStream, way: int, first: bool) -> None:
        try:
            while data := await here.receive_some(_CHUNK):
                await self._pass_on(bytes(data), there, way, first)
            await there.send_eof()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            for stream in (here, there):
                with suppress(OSError):
                    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    stream.socket.close()

    async def _pass_on(self, data: bytes, there: trio.SocketStream, way: int, first: bool) -> None:
        if self.slow:
            await trio.sleep(self.slow)
        if self.at is not None and self.at.way == way and (first or not self.at.of_first):
            until = self.at.byte - (self.first_passed if self.at.of_first else self.passed)[way]
            if until < len(data):
                self.at = None
                await self._send(data[: max(0, until)], there, way, first)
                data = data[max(0, until) :]
                assert self.act is not None
                await self.act()
        while self._stalled is not None:
            await self._stalled.wait()
        await self._send(data, there, way, first)

    async def _send(self, data: bytes, there: trio.SocketStream, way: int, first: bool) -> None:
        await there.send_all(data)
        self.passed[way] += len(data)
        if first:
            self.first_passed[way] += len(data)
            if self.recorded is not None and way == FORWARD:
                self.recorded += data


@asynccontextmanager
async def open_leg() -> AsyncIterator[Leg]:
    """Open a leg at a port of the loopback."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK)
    leg = Leg(listener.socket.getsockname()[1])
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(leg.serve, listener, nursery)
        yield leg
        nursery.cancel_scope.cancel()
