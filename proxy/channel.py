"""A multifd channel: a connection beside a migration's main one, whose bytes pass as they are."""

from typing import Final

import trio

from proxy.address import TcpAddress
from proxy.errors import PeerError
from proxy.sockets import dial, finish_sending, receive, reset, send, together, translated, tune

_BUFFER: Final = 1 << 20
_PATIENCE: Final = 5.0
"""Seconds between the end of a channel and that of the main one; the two may overtake each other on the way."""


class Channel:
    """Carries one channel."""

    def __init__(self, destination: TcpAddress, source: trio.socket.SocketType, main_is_complete: trio.Event) -> None:
        self._address = destination
        self._source = source
        self._main_is_complete = main_is_complete
        self._scope = trio.CancelScope()
        self._clean = False

    async def run(self, opening: bytes) -> None:
        """Carry the channel from its first bytes to its end; both connections are closed then.

        Raises:
            PeerError: It broke, or ended though the main channel does not.
        """
        destination: trio.socket.SocketType | None = None
        try:
            with self._scope:
                destination = await dial(self._address)
                tune(self._source)
                tune(destination)
                async with translated("destination"):
                    await send(destination, opening)
                await together(
                    self._pump(self._source, "source", destination, "destination"),
                    self._pump(destination, "destination", self._source, "source"),
                )
                self._clean = True
        finally:
            for sock in (self._source, destination):
                if sock is None:
                    continue
                if self._clean:
                    sock.close()
                else:
                    reset(sock)

    def end(self, *, clean: bool) -> None:
        """Say that the migration has ended: what is under way may end in order, or is reset."""
        self._clean = clean
        if clean:
            self._scope.deadline = trio.current_time() + _PATIENCE
        else:
            self._scope.cancel()

    async def _pump(
        self, here: trio.socket.SocketType, name: str, there: trio.socket.SocketType, there_name: str
    ) -> None:
        with memoryview(bytearray(_BUFFER)) as buffer:
            while data := await receive(here, buffer, name):
                async with translated(there_name):
                    await send(there, data)
        with trio.move_on_after(_PATIENCE):
            await self._main_is_complete.wait()
        if not self._main_is_complete.is_set():
            raise PeerError(name, "ended it before the migration was complete")
        async with translated(there_name):
            finish_sending(there)
