"""Listening for sources, on whatever an address names."""

import os
import socket
import stat
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from proxy.address import (
    Address,
    FdAddress,
    StdioAddress,
    SystemdAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    format_address,
)
from proxy.connection import Connection, SocketConnection, StdioConnection
from proxy.errors import ConfigError, PeerError
from proxy.resolving import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_BACKLOG: Final = 128
_FIRST_PASSED: Final = 3
"""The number of the first socket that systemd passes (SD_LISTEN_FDS_START)."""

_OPENING: Final = 64 << 10
_BREATH: Final = 0.2


class Listener(ABC):
    """Where sources connect.

    Attributes:
        name: Its address, in QEMU's syntax.
    """

    name: str

    @abstractmethod
    async def accept(self) -> Connection | None:
        """Wait for a connection; None when no more can come. Raises OSError."""

    @abstractmethod
    def close(self) -> None:
        """Listen no more."""


class SocketListener(Listener):
    """A socket that listens.

    Attributes:
        socket: The socket.
    """

    def __init__(self, sock: trio.socket.SocketType, path: str | None = None) -> None:
        self.name = _own_name(sock)
        self.socket = sock
        self._listener = trio.SocketListener(sock)
        self._path = path

    async def accept(self) -> Connection:
        """Wait for a connection."""
        stream = await self._listener.accept()
        return SocketConnection("source", stream.socket)

    def close(self) -> None:
        """Listen no more; a socket's file goes, too."""
        self._listener.socket.close()
        if self._path is not None:
            with suppress(OSError):
                os.unlink(self._path)


class SingleListener(Listener):
    """A connection that is there already: the only one that comes."""

    def __init__(self, connection: Connection) -> None:
        self.name = connection.name
        self._connection: Connection | None = connection

    async def accept(self) -> Connection | None:
        """Return the connection, once."""
        await trio.lowlevel.checkpoint()
        connection, self._connection = self._connection, None
        return connection

    def close(self) -> None:
        """Listen no more."""
        if self._connection is not None:
            self._connection.close()


async def listen(address: Address) -> list[Listener]:
    """Listen on every address that the name stands for; an empty host is the loopback, never every interface.

    Raises:
        ConfigError: The name is unknown, or an address cannot be bound.
    """
    match address:
        case StdioAddress():
            return [SingleListener(StdioConnection("source"))]
        case FdAddress():
            return [_inherited(address.number, str(address))]
        case SystemdAddress():
            return _passed_on(os.environ)
    try:
        match address:
            case UnixAddress():
                return [await _unix_listener(address)]
            case VsockAddress():
                return [await _bound(trio.socket.AF_VSOCK, (address.cid, address.port))]
            case TcpAddress():
                found = await resolve(address, passive=True)
                return [await _bound(family, (host, port)) for family, host, port in found]
    except OSError as error:
        # A resolver's numbers are negative, and are no errnos; trio's own words repeat the address.
        problem = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        raise ConfigError(f"cannot listen on {address}: {problem}") from error


async def _bound(family: int, name: tuple[str | int, int] | str, path: str | None = None) -> Listener:
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        if family in (trio.socket.AF_INET, trio.socket.AF_INET6):
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        if family == trio.socket.AF_INET6:
            sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 1)
        await sock.bind(name)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return SocketListener(sock, path)


async def _unix_listener(address: UnixAddress) -> Listener:
    if address.abstract:
        return await _bound(trio.socket.AF_UNIX, address.sockaddr)
    await _remove_stale(address)
    return await _bound(trio.socket.AF_UNIX, address.path, address.path)


async def _remove_stale(address: UnixAddress) -> None:
    """Remove a socket's file that nobody listens on any more, as a killed proxy leaves it."""
    try:
        if not stat.S_ISSOCK(os.lstat(address.path).st_mode):
            return
    except OSError:
        return
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as probe:
        try:
            await probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)


def _inherited(number: int, shown: str) -> Listener:
    """Listen on a socket that was inherited; one that is connected is the only source."""
    try:
        sock = socket.socket(fileno=os.dup(number))
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"cannot listen on {shown}: {error.strerror or error}") from error
    if sock.type != socket.SOCK_STREAM:
        raise ConfigError(f"cannot listen on {shown}: it is no stream socket")
    wrapped = trio.socket.from_stdlib_socket(sock)
    return SocketListener(wrapped) if listening else SingleListener(SocketConnection("source", wrapped))


def _passed_on(environment: "Mapping[str, str]") -> list[Listener]:
    """Listen on the sockets that systemd passed; source: sd_listen_fds(3)."""
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal() or not int(count):
        raise ConfigError(
            "cannot listen on systemd:, no sockets were passed (LISTEN_PID, LISTEN_FDS); a .socket unit starts the "
            "service with them"
        )
    return [_inherited(number, f"fd:{number}") for number in range(_FIRST_PASSED, _FIRST_PASSED + int(count))]


async def first_to_speak(listeners: list[Listener], say: "Callable[[str], None]") -> tuple[Connection, bytes]:
    """Wait for a connection that brings bytes, not only its end as a port scan does.

    Returns:
        The connection, and its first bytes. The listeners, and all other connections, are closed.
    """
    chosen: list[tuple[Connection, bytes]] = []
    async with trio.open_nursery() as nursery:

        async def accept(listener: Listener) -> None:
            try:
                while True:
                    try:
                        connection = await listener.accept()
                    except OSError as error:
                        say(f"cannot accept a connection just now: {error.strerror or error}")
                        await trio.sleep(_BREATH)
                        continue
                    if connection is None:
                        await trio.sleep_forever()
                    else:
                        nursery.start_soon(greet, connection)
            finally:
                listener.close()

        async def greet(connection: Connection) -> None:
            buffer = memoryview(bytearray(_OPENING))
            length = 0
            try:
                with suppress(PeerError):
                    length = await connection.receive(buffer)
                if not length:
                    say(f"{connection.name} connected and left without a word")
                elif not chosen:
                    chosen.append((connection, bytes(buffer[:length])))
                    nursery.cancel_scope.cancel()
            finally:
                if not any(connection is taken for taken, _ in chosen):
                    connection.reset()

        for listener in listeners:
            nursery.start_soon(accept, listener)
    return chosen[0]


def _own_name(sock: trio.socket.SocketType) -> str:
    name = sock.getsockname()
    if sock.family == trio.socket.AF_UNIX:
        text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)
        return f"unix:{text.replace(chr(0), '@')}"
    if sock.family == trio.socket.AF_VSOCK:
        return str(VsockAddress(int(name[0]), int(name[1])))
    return format_address(str(name[0]), int(name[1]))
