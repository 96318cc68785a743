"""A leg of a migration's way that can break: it carries bytes, counts them, and does as it is told at one of them."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_CHUNK = 64 << 10
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class Leg:
    """Carries connections to a port.

    Attributes:
        port: Where it listens.
        target: The port that it carries them to.
        passed: Bytes so far, forward and backward, since `begin`.
        at: The direction and the byte at which `act` is called, once; None for never.
        act: What is done there; nothing passes meanwhile.
        slow: Seconds that each piece is held up.
    """

    port: int
    target: int = 0
    passed: list[int] = field(default_factory=lambda: [0, 0])
    at: tuple[int, int] | None = None
    act: Callable[[], Awaitable[None]] | None = None
    slow: float = 0.0
    _pairs: list[tuple[trio.SocketStream, trio.SocketStream]] = field(default_factory=list)
    _stalled: trio.Event | None = None

    def begin(self, target: int) -> None:
        """Make ready for another migration."""
        self.target, self.passed, self.at, self.act, self.slow = target, [0, 0], None, None, 0.0
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
                far = await trio.open_tcp_stream("127.0.0.1", self.target)
            except OSError:
                near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                near.socket.close()
                return
            self._pairs.append((near, far))
            async with trio.open_nursery() as both:
                both.start_soon(self._carry, near, far, 0)
                both.start_soon(self._carry, far, near, 1)
            near.socket.close()
            far.socket.close()

    async def _carry(self, here: trio.SocketStream, there: trio.SocketStream, way: int) -> None:
        try:
            while data := await here.receive_some(_CHUNK):
                await self._pass_on(bytes(data), there, way)
            await there.send_eof()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            for stream in (here, there):
                with suppress(OSError):
                    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    stream.socket.close()

    async def _pass_on(self, data: bytes, there: trio.SocketStream, way: int) -> None:
        if self.slow:
            await trio.sleep(self.slow)
        if self.at is not None and self.at[0] == way and self.passed[way] + len(data) > self.at[1]:
            first = max(0, self.at[1] - self.passed[way])
            self.at = None
            await there.send_all(data[:first])
            self.passed[way] += first
            data = data[first:]
            assert self.act is not None
            await self.act()
        while self._stalled is not None:
            await self._stalled.wait()
        await there.send_all(data)
        self.passed[way] += len(data)


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
