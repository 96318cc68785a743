"""Connections as migrations need them: half-closed, and reset. What breaks on one is a PeerError."""

import errno
import struct
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from proxy.address import VsockAddress, format_address
from proxy.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.events import Raw

_RESET: Final = struct.pack("ii", 1, 0)
_INET: Final = (trio.socket.AF_INET, trio.socket.AF_INET6)


class Connection(ABC):
    """A connection to one peer, both ways.

    Attributes:
        peer: `source` or `destination`.
        name: The peer's address, in QEMU's syntax.
        host: The peer's host, where its address has one; connections of one migration come from one host.
    """

    def __init__(self, peer: str, name: str, host: str = "") -> None:
        self.peer = peer
        self.name = name
        self.host = host

    @abstractmethod
    async def receive(self, buffer: memoryview) -> int:
        """Receive into a buffer; return how many bytes came, 0 at the end.

        Raises:
            PeerError: The connection broke.
        """

    @abstractmethod
    async def send(self, data: "Raw") -> None:
        """Send all of `data`.

        Raises:
            PeerError: The connection broke.
        """

    @abstractmethod
    async def finish(self) -> None:
        """Carry a half-close over: nothing more will be sent.

        Raises:
            PeerError: The connection broke.
        """

    @abstractmethod
    def close(self) -> None:
        """Close it in order."""

    @abstractmethod
    def reset(self) -> None:
        """Close it so that the peer, where its transport can tell, sees an error and no clean end."""


class SocketConnection(Connection):
    """A connection over one socket of any family."""

    def __init__(self, peer: str, sock: trio.socket.SocketType, *, name: str | None = None) -> None:
        super().__init__(peer, _peer_name(sock) if name is None else name, _peer_host(sock))
        self.socket = sock
        if sock.family in _INET:
            sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE, 1)

    async def receive(self, buffer: memoryview) -> int:
        """Receive into a buffer; see `Connection.receive`."""
        with self.translated():
            return await self.socket.recv_into(buffer)

    async def send(self, data: "Raw") -> None:
        """Send all of `data`; see `Connection.send`."""
        with self.translated(), memoryview(data) as view:
            sent = 0
            while sent < len(view):
                sent += await self.socket.send(view[sent:])

    async def finish(self) -> None:
        """Carry a half-close over; see `Connection.finish`."""
        try:
            with self.translated():
                self.socket.shutdown(trio.socket.SHUT_WR)
        except PeerError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.ENOTCONN:
                raise

    def close(self) -> None:
        """Close it in order."""
        self.socket.close()

    def reset(self) -> None:
        """Close it with a TCP reset; Unix sockets have none, and the peer sees that its stream is cut."""
        if self.socket.fileno() >= 0:
            if self.socket.family in _INET:
                self.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, _RESET)
            self.socket.close()

    @contextmanager
    def translated(self) -> "Iterator[None]":
        """Turn the OSErrors of the socket into PeerErrors."""
        try:
            yield
        except OSError as error:
            raise PeerError(self.peer, f"broke the connection: {error.strerror or error}") from error


class StdioConnection(Connection):
    """Standard input and output, as two pipes or as one socket, whichever they are."""

    def __init__(self, peer: str) -> None:
        super().__init__(peer, "stdio:")
        self._input = trio.lowlevel.FdStream(_INPUT)
        self._output = trio.lowlevel.FdStream(_OUTPUT)

    async def receive(self, buffer: memoryview) -> int:
        """Receive into a buffer; see `Connection.receive`."""
        with self._translated():
            data = await self._input.receive_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    async def send(self, data: "Raw") -> None:
        """Send all of `data`; see `Connection.send`."""
        with self._translated():
            await self._output.send_all(data)

    async def finish(self) -> None:
        """Close standard output; see `Connection.finish`."""
        with self._translated():
            await self._output.aclose()

    def close(self) -> None:
        """Close both."""
        self._input.close()
        self._output.close()

    def reset(self) -> None:
        """Close both; pipes know no reset, and the peer sees that its stream is cut."""
        self.close()

    @contextmanager
    def _translated(self) -> "Iterator[None]":
        try:
            yield
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise PeerError(self.peer, f"broke the connection: {error.__cause__ or error}") from error


_INPUT: Final = 0
_OUTPUT: Final = 1


def _peer_name(sock: trio.socket.SocketType) -> str:
    """Return the peer's address in QEMU's syntax."""
    try:
        name = sock.getpeername()
    except OSError:
        return "tcp:?" if sock.family in _INET else "unix:?"
    if sock.family in _INET:
        return format_address(str(name[0]), int(name[1]))
    if sock.family == trio.socket.AF_VSOCK:
        return str(VsockAddress(int(name[0]), int(name[1])))
    own = sock.getsockname()
    shown = name or own
    text = shown.decode("utf-8", "backslashreplace") if isinstance(shown, bytes) else str(shown)
    return f"unix:{text.replace(chr(0), '@')}"


def _peer_host(sock: trio.socket.SocketType) -> str:
    try:
        name = sock.getpeername()
    except OSError:
        return ""
    return str(name[0]) if sock.family in (*_INET, trio.socket.AF_VSOCK) else ""
