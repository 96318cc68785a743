"""The migrations that are under way, and waiting for one that a further connection belongs to."""

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from proxy.live.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.live.session import Session


class UnderWay:
    """The sessions of the migrations that are under way.

    Attributes:
        draining: Whether no more migrations are taken.
        turns: Whose turn it is to judge.
    """

    def __init__(self) -> None:
        self.draining = False
        self.turns = Turns()
        self._sessions: list[Session] = []
        self._changed = trio.Event()
        self._cancelled_when: dict[trio.CancelScope, Callable[[], bool]] = {}

    def __contains__(self, what: object) -> bool:
        return any(one is what for one in self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def dialled(self) -> int:
        """How many have reached their destination; what only begins as a migration takes no place."""
        return sum(session.dialled.is_set() for session in self._sessions)

    def begin(self, session: "Session") -> None:
        """Add a migration that begins; one to the same destination that is paused has nobody to be recovered with."""
        for other in self._sessions:
            if other.key[1] == session.key[1] and other.recovery.waits:
                other.last_call()
        self._sessions.append(session)
        self.tell_change()

    def end(self, session: "Session") -> None:
        """Remove one that has ended; `tell_change` is to follow."""
        self._sessions.remove(session)

    def drain(self) -> None:
        """Take no more; those under way go on to their end, but wait for no recovery."""
        self.draining = True
        for session in self._sessions:
            session.last_call()
        self.tell_change()

    def find(self, key: tuple[str, str], fits: "Callable[[Session], bool]" = bool) -> "Session | None":
        """Return the newest migration of a source's host and a destination that fits; None when none does."""
        return next((one for one in reversed(self._sessions) if one.key == key and fits(one)), None)

    async def until(self, true: "Callable[[], bool]") -> None:
        """Wait until something is true of the migrations under way."""
        while not true():
            await self._changed.wait()

    @contextmanager
    def cancelling(self, scope: trio.CancelScope, true: "Callable[[], bool]") -> "Iterator[None]":
        """Cancel a scope once something is true of the migrations under way, for the length of the block.

        For thousands that wait: it takes no task of its own.
        """
        if true():
            scope.cancel()
        self._cancelled_when[scope] = true
        try:
            yield
        finally:
            del self._cancelled_when[scope]

    def tell_change(self) -> None:
        """Say that something may be true now that was not."""
        for scope, true in self._cancelled_when.items():
            if true():
                scope.cancel()
        self._changed.set()
        self._changed = trio.Event()
