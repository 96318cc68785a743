"""A channel beside a migration's main connection, of multifd or of postcopy-preempt; its bytes pass as they are."""

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from proxy.errors import PeerError
from proxy.net.pumps import pass_on, together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.net.connection import Connection

_BUFFER: Final = 1 << 20
_PATIENCE: Final = 5.0
"""Seconds between the end of a channel and that of the main one; the two may overtake each other on the way."""

# A destination that loses its channels before it has noticed that the main one is gone may wait for ever for what was
# still to come on them, and then answers its monitor no more (`multifd_recv_sync_main` of `migration/multifd.c`; seen
# with QEMU 5.2, 10.0 and 11.1). So what the source has sent is passed on, however the migration ends.


class Channel:
    """Carries one channel.

    Attributes:
        dialled: Whether the destination took it.
        bytes: How many bytes of the source have gone on.
    """

    def __init__(
        self, dial: "Callable[[], Awaitable[Connection]]", source: "Connection", main_is_over: trio.Event
    ) -> None:
        self.dialled = False
        self.bytes = 0
        self._dial = dial
        self._source = source
        self._main_is_over = main_is_over
        self._scope = trio.CancelScope()
        self._clean = False
        self._swallowing = False

    async def run(self, opening: bytes) -> None:
        """Carry the channel from its first bytes to its end; both connections are closed then.

        Raises:
            PeerError: It broke, or ended though the main channel does not.
        """
        destination: Connection | None = None
        try:
            try:
                with self._scope:
                    destination = await self._dial()
                    self.dialled = True
                    await destination.send(opening)
                    self._count(len(opening))
                    await together(
                        self._pump(self._source, destination, self._count),
                        self._pump(destination, self._source, lambda _: None),
                    )
                    self._clean = True
            finally:
                if destination is not None:
                    _close(destination, clean=self._clean)
            if self._swallowing:
                await swallow(self._source)
        finally:
            _close(self._source, clean=self._clean)

    def end(self, *, clean: bool) -> None:
        """Say that the main connection has ended; what was sent on this one before may still pass."""
        self._clean = clean
        self._main_is_over.set()
        self._scope.deadline = trio.current_time() + _PATIENCE

    def cut(self) -> None:
        """Carry no more."""
        self._scope.cancel()

    def swallow(self) -> None:
        """Carry no more, and take what the source still sends, so that it sees no error."""
        self._swallowing = True
        self._scope.cancel()

    def _count(self, length: int) -> None:
        self.bytes += length  # by one thread only, whichever it is

    async def _pump(self, here: "Connection", there: "Connection", count: "Callable[[int], None]") -> None:
        await pass_on(here, there, count)
        with trio.move_on_after(_PATIENCE):
            await self._main_is_over.wait()
        if not self._main_is_over.is_set():
            raise PeerError(here.peer, "ended it before the migration was complete")
        await there.finish()


async def swallow(source: "Connection", patience: float = float("inf")) -> None:
    """Take what a source sends, to its end, and throw it away.

    Args:
        source: Its connection.
        patience: Seconds that it may say nothing.
    """
    with suppress(PeerError), memoryview(bytearray(_BUFFER)) as buffer:
        length = 1
        while length:
            length = 0
            with trio.move_on_after(patience):
                length = await source.receive(buffer)


def _close(connection: "Connection", *, clean: bool) -> None:
    if clean:
        connection.close()
    else:
        connection.reset()
