"""What comes from a source: received, or looked at where it lies and moved on in the kernel (MSG_PEEK, splice(2)).

What is to be understood has to be copied once; what goes on as it came need not be copied a second time.
"""

import errno
import fcntl
import os
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, TypeGuard

import trio

from proxy.errors import PeerError
from proxy.net.connection import SocketConnection, acknowledge

if TYPE_CHECKING:
    from types import TracebackType

    from proxy.net.connection import Connection

_MUCH: Final = 64 << 10
"""Bytes in one go from which on it pays to look at the next ones; what comes in smaller pieces is received."""

_GONE: Final = "broke the connection: what it had sent is gone"

_INET: Final = (socket.AF_INET, socket.AF_INET6)
_PIPE: Final = 1 << 20
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Lookout:
    """Takes what a source sends, on its way to a destination. A context manager; leave it before the two are closed.

    Attributes:
        looked_at: How many bytes, of those that `receive` returned last, are still to be taken from the connection.
    """

    def __init__(self, source: "Connection", destination: "Connection") -> None:
        """Make it for two connections; only what comes over plain TCP, and goes on over it, is looked at."""
        self.looked_at = 0
        self._source = source
        self._files = ExitStack()
        self._ways = (source, destination) if _is_plain(source) and _is_plain(destination) else None
        self._kernel: _Kernel | None = None
        self._much_comes = False

    def __enter__(self) -> "Lookout":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self._files.close()

    async def receive(self, buffer: memoryview, *, may_look: bool) -> int:
        """Receive into a buffer; return how many bytes came, 0 at the end.

        Args:
            buffer: Where they go.
            may_look: Whether they may stay where they are as well; `looked_at` tells whether they did.

        Raises:
            PeerError: The connection broke.
        """
        kernel = self._ready() if may_look and self._much_comes else None
        if kernel is None:
            length = await self._source.receive(buffer)
        else:
            length = self.looked_at = await kernel.look(buffer)
        self._much_comes = length >= _MUCH
        return length

    async def move_on(self, length: int) -> bool:
        """Move the first of the bytes that were looked at on to the destination, in the kernel.

        Returns:
            False, and none has been moved, if the kernel cannot do that with such sockets.

        Raises:
            PeerError: One of the connections broke.
        """
        assert self._kernel is not None
        moved = await self._kernel.move_on(length)
        if moved:
            self.looked_at -= length
        else:
            self._ways = self._kernel = None
        return moved

    async def take_rest(self) -> None:
        """Take those of the bytes that were looked at, and not moved on; they are in the buffer.

        Raises:
            PeerError: The source's connection broke.
        """
        rest, self.looked_at = memoryview(bytearray(self.looked_at)), 0
        while len(rest):
            length = await self._source.receive(rest)
            if not length:
                raise PeerError("source", _GONE)
            rest = rest[length:]

    def _ready(self) -> "_Kernel | None":
        """Return what looks, made when it is needed first; None where it cannot be had."""
        if self._kernel is None and self._ways is not None:
            try:
                self._kernel = _Kernel(*self._ways, self._files)
            except OSError:
                self._ways = None
        return self._kernel


def _is_plain(connection: "Connection") -> TypeGuard[SocketConnection]:
    return isinstance(connection, SocketConnection) and connection.socket.family in _INET


class _Kernel:
    """Looks at what has come on one socket, and moves it on to another one through a pipe."""

    def __init__(self, source: SocketConnection, destination: SocketConnection, files: ExitStack) -> None:
        """Make it; `files` closes what it opens. Raises OSError when there are no descriptors for it just now."""
        self._source = source
        self._destination = destination
        # trio's sockets cannot look into a buffer.
        self._twin = files.enter_context(socket.socket(fileno=os.dup(source.socket.fileno())))
        self._outlet, self._inlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        files.callback(os.close, self._outlet)
        files.callback(os.close, self._inlet)
        with suppress(OSError):  # less will do
            fcntl.fcntl(self._inlet, fcntl.F_SETPIPE_SZ, _PIPE)

    async def look(self, buffer: memoryview) -> int:
        """Copy what has come, as soon as something has, and leave it there; see `Lookout.receive`."""
        try:
            return await self._source.when(trio.lowlevel.wait_readable, self._peek, buffer)
        except OSError as error:
            raise self._source.broken(error) from error

    async def move_on(self, length: int) -> bool:
        """Move so many bytes on; see `Lookout.move_on`."""
        left = length
        while left:
            try:
                filled = os.splice(self._twin.fileno(), self._inlet, left, flags=_FLAGS)
            except OSError as error:
                if error.errno == errno.EINVAL and left == length:
                    return False
                raise self._source.broken(error) from error
            if not filled:
                raise PeerError("source", _GONE)
            acknowledge(self._twin, filled)
            left -= filled
            try:
                while filled:
                    filled -= await self._destination.when(trio.lowlevel.wait_writable, self._let_out, filled)
            except OSError as error:
                raise self._destination.broken(error) from error
        return True

    def _peek(self, _file: int, buffer: memoryview) -> int:
        return self._twin.recv_into(buffer, 0, socket.MSG_PEEK)

    def _let_out(self, target: int, length: int) -> int:
        return os.splice(self._outlet, target, length, flags=_FLAGS)
