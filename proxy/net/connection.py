"""Connections as migrations need them: half-closed, and reset. What breaks on one is a PeerError."""

import errno
import os
import select
import socket
import struct
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from proxy.errors import PeerError
from proxy.net.address import VsockAddress, format_address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from formats.frame.event import Raw

_T = TypeVar("_T")

_RESET: Final = struct.pack("ii", 1, 0)
_TURN: Final = 4 << 20
"""Bytes after which other tasks get their turn, where a socket is always ready: some milliseconds' worth."""

_SEGMENT: Final = 1 << 16
"""Bytes of a TCP segment at most: those of the loopback are as long."""

_INET: Final = (trio.socket.AF_INET, trio.socket.AF_INET6)

_KEEPALIVE: Final = (
    (trio.socket.TCP_KEEPIDLE, 60),
    (trio.socket.TCP_KEEPINTVL, 15),
    (trio.socket.TCP_KEEPCNT, 8),
)
"""A peer that is gone without a word is noticed after three minutes of silence, not after two hours. There is no
TCP_USER_TIMEOUT: it would also end connections to a destination that lives, and takes nothing for a while (tcp(7))."""


class Connection(ABC):
    """A connection to one peer, both ways.

    Attributes:
        peer: `source` or `destination`.
        name: The peer's address, in QEMU's syntax.
        host: The peer's host, where its address has one; connections of one migration come from one host.
        since: When it was made or accepted, by `time.monotonic`.
    """

    def __init__(self, peer: str, name: str, host: str = "") -> None:
        self.peer = peer
        self.name = name
        self.host = host
        self.since = time.monotonic()

    @abstractmethod
    async def receive(self, buffer: memoryview) -> int:
        """Receive into a buffer; return how many bytes came, 0 at the end.

        Raises:
            PeerError: The connection broke.
        """

    def has_ended(self) -> bool:
        """Tell, as far as that can be told now, whether the peer has ended or broken it; what it sent may be unread."""
        return False

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
        self._since_turn = 0
        if sock.family in _INET:
            sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                sock.setsockopt(trio.socket.IPPROTO_TCP, option, value)

    @property
    def stays_here(self) -> bool:
        """Whether its other end is on this machine: the kernel takes the address that is dialled for its own end."""
        try:
            return bool(self.socket.getpeername()[0] == self.socket.getsockname()[0])
        except OSError:
            return False

    async def receive(self, buffer: memoryview) -> int:
        """Receive into a buffer; see `Connection.receive`."""
        with self._translated():
            length = await self.when(trio.lowlevel.wait_readable, os.readv, [buffer])
            acknowledge(self.socket, length)
        return length

    async def peek(self, length: int) -> bytes:
        """Wait for bytes, and return up to `length` of them, which can still be received; none at the end.

        Raises:
            PeerError: The connection broke.
        """
        with self._translated():
            return await self.socket.recv(length, trio.socket.MSG_PEEK)

    def has_ended(self) -> bool:
        """Tell whether the peer has ended it; see `Connection.has_ended`."""
        return hung_up(self.socket.fileno())

    async def send(self, data: "Raw") -> None:
        """Send all of `data`; see `Connection.send`."""
        with self._translated(), memoryview(data) as view:
            sent = 0
            while sent < len(view):
                sent += await self.when(trio.lowlevel.wait_writable, os.write, view[sent:])

    async def when(
        self,
        wait: "Callable[[trio.socket.SocketType], Awaitable[None]]",
        act: "Callable[[int, _T], int]",
        argument: _T,
    ) -> int:
        """Do what moves bytes, and returns how many, as soon as it can be done; other tasks get their turn meanwhile.

        trio's own sockets go through its scheduler each time, also where there is nothing to wait for.
        """
        if self._since_turn >= _TURN:
            self._since_turn = 0
            await trio.lowlevel.checkpoint()
        while True:
            try:
                length = act(self.socket.fileno(), argument)
            except BlockingIOError:
                self._since_turn = 0
                await wait(self.socket)
            else:
                self._since_turn += length
                return length

    async def finish(self) -> None:
        """Carry a half-close over; see `Connection.finish`."""
        try:
            with self._translated():
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

    def broken(self, error: OSError) -> PeerError:
        """Say what an error of the socket means."""
        problem = PeerError(self.peer, f"broke the connection: {error.strerror or error}")
        problem.__cause__ = error
        return problem

    @contextmanager
    def _translated(self) -> "Iterator[None]":
        """Turn the OSErrors of the socket into PeerErrors."""
        try:
            yield
        except OSError as error:
            raise self.broken(error) from error


def hung_up(descriptor: int) -> bool:
    """Tell whether a socket's peer sends no more, or is gone: poll(2), POLLRDHUP, POLLHUP and POLLERR."""
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    return bool(poll.poll(0))


def acknowledge(sock: trio.socket.SocketType | socket.socket, length: int) -> None:
    """Acknowledge at once what has been taken from a socket, unless that is done by itself.

    QEMU's sockets do not send their next small piece before the last one is acknowledged (Nagle), and Linux lets the
    acknowledgement of no more than a segment wait for up to 40 ms, in which the guest may stand. Source: tcp(7),
    TCP_QUICKACK; Linux `net/ipv4/tcp.c` (`__tcp_cleanup_rbuf`).

    Args:
        sock: TCP, or of another kind that knows no such thing.
        length: Bytes that were taken.
    """
    if length <= _SEGMENT and sock.family in _INET:
        sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_QUICKACK, 1)


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
