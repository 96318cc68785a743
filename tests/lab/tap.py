"""A relay that records what passes: source -> Tap -> proxy -> Tap -> destination."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import trio

from tests.lab.qmp import LabError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_BUFFER = 1 << 20
_POLL = 0.005
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds
_CLOSE_IN_ORDER = struct.pack("ii", 0, 0)
_GONE = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN})


class Ending(Enum):
    """How a relayed connection ended."""

    CLOSED = "both sides said end of file"
    RESET = "one side reset the connection, and so did the tap to the other; or the tap cut it"
    UNREACHABLE = "the target did not accept; the tap reset the client"


@dataclass
class Recording:
    """One connection through a tap. The files are complete once `ending` is set; see `wait`.

    Attributes:
        forward: file with the bytes from the client to the target.
        backward: file with the bytes from the target to the client (a migration's return path).
        ending: None while the connection lives.
    """

    forward: Path
    backward: Path
    ending: Ending | None = None

    def __post_init__(self) -> None:
        self._finished = trio.Event()
        self.scope = trio.CancelScope()

    async def wait(self, limit: float = 20) -> Ending:
        """Wait until the connection ended in both directions.

        Raises:
            LabError: it still lives after limit seconds.
        """
        with trio.move_on_after(limit):
            await self._finished.wait()
        if self.ending is None:
            raise LabError(f"the tapped connection still lives after {limit} s")
        return self.ending

    def finish(self, ending: Ending) -> None:
        """Note the ending and wake who waits for it."""
        self.ending = ending
        self._finished.set()


class Tap:
    """A recording relay on the loopback. Get it from `open_tap`.

    Attributes:
        port: where it listens.
        uri: the same as a migration URI.
        target: address and port that the next connection is relayed to.
        recordings: one for each connection accepted, in order.
    """

    def __init__(self, listener: trio.socket.SocketType, target: tuple[str, int], directory: Path) -> None:
        self._listener = listener
        self.target = target
        self._directory = directory
        self.port: int = listener.getsockname()[1]
        self.uri = f"tcp:127.0.0.1:{self.port}"
        self.recordings: list[Recording] = []

    async def serve(self) -> None:
        """Accept and relay connections until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                client, _ = await self._listener.accept()
                stem = f"tap-{self.port}-{len(self.recordings)}"
                recording = Recording(self._directory / f"{stem}.forward", self._directory / f"{stem}.backward")
                recording.forward.touch()
                recording.backward.touch()
                self.recordings.append(recording)
                nursery.start_soon(self._relay, client, self.target, recording)

    def cut(self, number: int) -> None:
        """Reset a connection on both sides, as a network that breaks would in the end."""
        self.recordings[number].scope.cancel()

    async def wait_connections(self, count: int, limit: float = 10) -> None:
        """Wait until that many connections were accepted, and their targets chosen.

        Raises:
            LabError: not within limit seconds.
        """
        with trio.move_on_after(limit):
            while len(self.recordings) < count:
                await trio.sleep(_POLL)
        if len(self.recordings) < count:
            raise LabError(f"the tap got {len(self.recordings)} of {count} connections within {limit} s")

    async def wait_forwarded(self, count: int, limit: float = 10, *, number: int = 0) -> Recording:
        """Wait until a connection, the first unless told, carried count bytes towards the target; return its recording.

        Raises:
            LabError: not within limit seconds.
        """
        with trio.move_on_after(limit):
            while True:
                if len(self.recordings) > number and self.recordings[number].forward.stat().st_size >= count:
                    return self.recordings[number]
                await trio.sleep(_POLL)
        raise LabError(f"the tap did not forward {count} bytes within {limit} s")

    async def _relay(self, client: trio.socket.SocketType, address: tuple[str, int], recording: Recording) -> None:
        with client, trio.socket.socket() as target:
            for side in client, target:
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            ending = Ending.RESET
            with recording.scope:
                ending = await self._relay_between(client, target, address, recording)
            if ending is Ending.CLOSED:
                for side in client, target:
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_IN_ORDER)
        recording.finish(ending)

    async def _relay_between(
        self,
        client: trio.socket.SocketType,
        target: trio.socket.SocketType,
        address: tuple[str, int],
        recording: Recording,
    ) -> Ending:
        try:
            await target.connect(address)
        except OSError:
            return Ending.UNREACHABLE
        ending = Ending.CLOSED
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pump, client, target, recording.forward)
                nursery.start_soon(_pump, target, client, recording.backward)
        except* _ResetError:
            ending = Ending.RESET
        return ending


@asynccontextmanager
async def open_tap(target_port: int, directory: Path, target_host: str = "127.0.0.1") -> AsyncIterator[Tap]:
    """Run a tap for the length of an `async with`; connections that still live at its end are reset.

    The target is dialled for each connection, so it may start to listen after the tap.

    Args:
        target_port: where to connect to.
        directory: where the recordings go.
        target_host: an IPv4 address.
    """
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        tap = Tap(listener, (target_host, target_port), directory)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tap.serve)
            yield tap
            nursery.cancel_scope.cancel()


class _ResetError(Exception):
    """One side is gone without an end of file."""


async def _pump(source: trio.socket.SocketType, sink: trio.socket.SocketType, record: Path) -> None:
    """Copy and record until end of file, then pass the end of file on."""
    buffer = memoryview(bytearray(_BUFFER))
    with record.open("wb", buffering=0) as file:
        try:
            while count := await source.recv_into(buffer):
                file.write(buffer[:count])
                await _send_all(sink, buffer[:count])
            sink.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            raise _ResetError from error


async def _send_all(sink: trio.socket.SocketType, data: memoryview) -> None:
    while data:
        data = data[await sink.send(data) :]
