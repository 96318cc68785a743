"""Pausing a postcopy migration whose connection broke, until its source comes back on a new one."""

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from proxy.net.connection import Connection

PAUSED: Final = (
    "the migration is paused in postcopy, the guest's memory on both hosts; it can be recovered, through this proxy or "
    "another: migrate-recover on the destination, then migrate with resume on the source"
)


class Recovery:
    """Waits for the source to come back, and keeps the connection on which it did."""

    def __init__(self, limit: float | None) -> None:
        """Make it for one migration; `limit` is how many seconds it waits at most each time, None for ever."""
        self._limit = limit
        self._waiting: trio.CancelScope | None = None
        self._returned: tuple[Connection, bytes] | None = None
        self._last_call = False

    @property
    def waits(self) -> bool:
        """Whether the migration is paused, and waits for its source."""
        return self._waiting is not None

    @property
    def returned(self) -> bool:
        """Whether the source has come back."""
        return self._returned is not None

    def bring(self, source: "Connection", opening: bytes) -> None:
        """Bring a connection on which the source came back, with its first bytes; one brought before is reset."""
        self.reset()
        self._returned = source, opening
        if self._waiting is not None:
            self._waiting.cancel()

    def take(self) -> "tuple[Connection, bytes]":
        """Take what was brought."""
        assert self._returned is not None
        taken, self._returned = self._returned, None
        return taken

    def reset(self) -> None:
        """Reset a connection that was brought and not taken."""
        if self._returned is not None:
            self._returned[0].reset()
            self._returned = None

    def last_call(self) -> None:
        """Wait no more, now and later."""
        self._last_call = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def wait(self) -> None:
        """Wait until the source is back, or for the last call, or as long as it may.

        The migration can be recovered later, too: its source then brings a session of its own.
        """
        with trio.CancelScope() as self._waiting:
            if self._limit is not None:
                self._waiting.deadline = trio.current_time() + self._limit
            if self._last_call:
                self._waiting.cancel()
            await trio.sleep_forever()
        self._waiting = None
