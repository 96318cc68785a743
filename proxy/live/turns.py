"""Turns: what takes milliseconds is done so that other migrations need not wait for all of it."""

from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Turns:
    """Has work that takes milliseconds done one at a time, each in another turn of trio's loop.

    Where twenty guests stop at once, their device states would otherwise be judged one after the other in a single
    turn, and the migrations that flow would stand meanwhile. Work that nobody else wants to do waits for nothing.
    """

    def __init__(self) -> None:
        self._free = trio.Semaphore(1)

    async def take(self, work: "Callable[[], T]") -> T:
        """Do work when it is its turn; return what it returns, or raise what it raises."""
        try:
            self._free.acquire_nowait()
        except trio.WouldBlock:
            await self._free.acquire()
        try:
            return work()
        finally:
            self._release_later()

    def _release_later(self) -> None:
        """Let the next one work when all others have had their turn."""
        try:
            trio.lowlevel.current_trio_token().run_sync_soon(self._free.release)
        except BaseException:
            self._free.release()
            raise
