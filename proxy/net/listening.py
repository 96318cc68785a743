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
