"""Listening for sources, on whatever was bound."""

from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from proxy.errors import PeerError
from proxy.net.connection import Connection, SocketConnection, StdioConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.net.binding import Bound
    from proxy.net.tls.roles import ServerTls

_OPENING: Final = 64 << 10
_BREATH: Final = 0.2


class Listener(ABC):
    """Where sources connect."""

    @abstractmethod
    async def accept(self) -> Connection | None:
        """Wait for a connection; None when no more can come. Raises OSError."""

    @abstractmethod
    def close(self) -> None:
        """Listen no more."""


class SocketListener(Listener):
    """A socket that listens."""

    def __init__(self, bound: "Bound", sock: trio.socket.SocketType) -> None:
        self._bound = bound
        self._listener = trio.SocketListener(sock)

    async def accept(self) -> Connection:
        """Wait for a connection."""
        stream = await self._listener.accept()
        return SocketConnection("source", stream.socket)

    def close(self) -> None:
        """Listen no more; a socket's file goes, too."""
        self._listener.socket.close()
        self._bound.close()


class SingleListener(Listener):
    """A connection that is there already: the only one that comes."""

    def __init__(self, connection: Connection) -> None:
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


def listen_on(one: "Bound") -> Listener:
    """Take connections from what was bound."""
    if one.socket is None:
        return SingleListener(StdioConnection("source"))
    sock = trio.socket.from_stdlib_socket(one.socket)
    return SocketListener(one, sock) if one.listens else SingleListener(SocketConnection("source", sock))


async def first_to_speak(
    listeners: list[Listener], say: "Callable[[str], None]", tls: "ServerTls | None" = None
) -> tuple[Connection, bytes]:
    """Wait for a connection that brings bytes, not only its end as a port scan does.

    Args:
        listeners: Where it may come.
        say: Takes one line for the operator.
        tls: What it must speak; None for plain text.

    Returns:
        The connection, and its first bytes. The listeners, and all other connections, are closed.
    """
    chosen: list[tuple[Connection, bytes]] = []
    async with trio.open_nursery() as nursery:

        async def accept(listener: Listener) -> None:
            try:
                while (connection := await _patiently_accepted(listener, say)) is not None:
                    nursery.start_soon(greet, connection)
                await trio.sleep_forever()
            finally:
                listener.close()

        async def greet(connection: Connection) -> None:
            try:
                connection = connection if tls is None else await tls.welcome(connection)
                opening = await _first_bytes(connection)
                if not opening:
                    say(f"{connection.name} connected and left without a word")
                elif not chosen:
                    chosen.append((connection, opening))
                    nursery.cancel_scope.cancel()
            except PeerError as error:
                say(f"{connection.name}: {error}")
            finally:
                if not any(connection is taken for taken, _ in chosen):
                    connection.reset()

        for listener in listeners:
            nursery.start_soon(accept, listener)
    return chosen[0]


async def _patiently_accepted(listener: Listener, say: "Callable[[str], None]") -> Connection | None:
    while True:
        try:
            return await listener.accept()
        except OSError as error:
            say(f"cannot accept a connection just now: {error.strerror or error}")
            await trio.sleep(_BREATH)


async def _first_bytes(connection: Connection) -> bytes:
    """Return what a connection brings first; nothing where it only ends, or breaks."""
    buffer = memoryview(bytearray(_OPENING))
    with suppress(PeerError):
        return bytes(buffer[: await connection.receive(buffer)])
    return b""
