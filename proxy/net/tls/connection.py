"""A connection over TLS, straight on its socket: half-closed as far as TLS can, reset, and fair to other tasks."""

import socket
import ssl
import struct
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from proxy.errors import PeerError
from proxy.net.connection import Connection, SocketConnection, acknowledge, hung_up
from proxy.net.tls.credentials import explained

if TYPE_CHECKING:
    from collections.abc import Callable

_Done = TypeVar("_Done")

_RESET: Final = struct.pack("ii", 1, 0)
_BREATH: Final = 0.01
_RECORD: Final = 1 << 14
_AT_ONCE: Final = 16 * _RECORD
"""Bytes received at once, at most: the peer must not be kept waiting for what has been decrypted."""
_TURN: Final = 64
"""Operations after which other tasks get their turn, where the socket is always ready."""


class TlsConnection(Connection):
    """A connection over TLS, straight on its socket.

    Attributes:
        socket: The socket, for its addresses.
    """

    def __init__(self, below: SocketConnection, wrap: "Callable[[socket.socket], ssl.SSLSocket]") -> None:
        super().__init__(below.peer, below.name, below.host)
        self.since = below.since
        raw = socket.socket(fileno=below.socket.detach())
        raw.setblocking(False)
        self._unread = b""
        self._ended = False
        self._since_turn = 0
        self._broken: OSError | None = None
        try:
            self.socket = wrap(raw)
        except BaseException:
            raw.close()
            raise

    @property
    def common_name(self) -> str:
        """The common name of the peer's certificate; empty where it has none."""
        certificate = self.socket.getpeercert() or {}
        subject: Any = certificate.get("subject", ())
        return next((value for rdn in subject for key, value in rdn if key == "commonName"), "")

    async def shake_hands(self) -> None:
        """Do the handshake; raises PeerError."""
        await self._patiently(self.socket.do_handshake)

    async def receive(self, buffer: memoryview) -> int:
        """Receive into a buffer; see `Connection.receive`."""
        length = await self._patiently(partial(self._receive, buffer))
        acknowledge(self.socket, length)
        return length

    def has_ended(self) -> bool:
        """Tell whether the peer has ended it; see `Connection.has_ended`."""
        return hung_up(self.socket.fileno())

    async def send(self, data: "bytes | bytearray | memoryview") -> None:
        """Send all of `data`; see `Connection.send`."""
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                sent += await self._patiently(partial(self.socket.send, view[sent:]))

    async def finish(self) -> None:
        """Send close_notify, and carry the half-close over; see `Connection.finish`."""
        await trio.lowlevel.checkpoint()
        self._say_goodbye()
        with suppress(OSError):
            # The method of SSLSocket would make it a plain one, for the other direction, too.
            socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def close(self) -> None:
        """Close it in order."""
        if self.socket.fileno() >= 0:
            self._say_goodbye()
            self._close()

    def reset(self) -> None:
        """Close it with a TCP reset; see `SocketConnection.reset`."""
        if self.socket.fileno() >= 0:
            if self.socket.family != socket.AF_UNIX:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._close()

    def _receive(self, buffer: memoryview) -> int:
        if self._unread:
            length = min(len(buffer), len(self._unread))
            buffer[:length], self._unread = self._unread[:length], self._unread[length:]
            return length
        if self._broken is not None:
            raise self._broken
        if self._ended:
            return 0
        # A record has 16 KiB at most; as many as have come are taken at once.
        filled, most = 0, min(len(buffer), _AT_ONCE)
        try:
            while filled < most and (length := self.socket.recv_into(buffer[filled:most])):
                filled += length
        except ssl.SSLZeroReturnError:
            pass  # both have said goodbye
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not filled:
                raise
        except OSError as error:
            if not filled:
                raise
            self._broken = error
        return filled

    def _close(self) -> None:
        trio.lowlevel.notify_closing(self.socket)
        self.socket.close()

    def _say_goodbye(self) -> None:
        """Send close_notify as far as that goes at once; what the peer still sends can be received after it."""
        if self._ended:
            return
        try:
            # Python's goodbye waits for the peer's, and takes what stands before it for an error.
            while data := self.socket.recv(_RECORD):
                self._unread += data
        except OSError:
            pass
        try:
            self.socket.unwrap()
            self._ended = True  # the peer had said goodbye before
        except ssl.SSLZeroReturnError:
            self._ended = True  # it had ended, if only the socket, and takes no goodbye any more
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._broken = error

    async def _patiently(self, operation: "Callable[[], _Done]") -> _Done:
        """Do something on the socket, waiting until it can be done; raises PeerError."""
        self._since_turn += 1
        if self._since_turn >= _TURN:
            self._since_turn = 0
            await trio.lowlevel.checkpoint()
        try:
            while True:
                try:
                    return operation()
                except ssl.SSLWantReadError:
                    await _waited(trio.lowlevel.wait_readable, self.socket)
                except ssl.SSLWantWriteError:
                    await _waited(trio.lowlevel.wait_writable, self.socket)
                self._since_turn = 0
        except (OSError, trio.ClosedResourceError) as error:
            raise PeerError(self.peer, f"broke the connection: {explained(error)}") from error


async def _waited(wait: "Callable[[socket.socket], Any]", sock: socket.socket) -> None:
    """Wait for one direction; should the other pump wait for the same, as when keys are renewed, try again soon."""
    try:
        await wait(sock)
    except trio.BusyResourceError:
        await trio.sleep(_BREATH)
