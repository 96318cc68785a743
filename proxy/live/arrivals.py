"""What a connection is that has arrived: a migration, one of its channels, a recovery, or no migration at all."""

from typing import TYPE_CHECKING, Final

import trio

from formats.channels.multifd import channel_guest
from proxy.errors import PeerError, ProxyError, RefusedError
from proxy.live.server_first import SILENCE, wait_first_word

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.live.session import Session
    from proxy.live.under_way import UnderWay
    from proxy.net.connection import Connection
    from proxy.net.route import Route

_CHANNEL_WAIT: Final = 10.0
"""Seconds that a channel waits for its migration, which may be accepted a little later."""

_SILENCE: Final = 0.05
"""Seconds after which a connection that says nothing may be a preempt channel; all others begin at once."""


class Arrivals:
    """Finds out what connections are, by what they begin with and by the migrations that are under way."""

    def __init__(self, route: "Route", under_way: "UnderWay", say: "Callable[[str], None]") -> None:
        """Make it for one relay; `say` takes one line for the operator."""
        self._route = route
        self._under_way = under_way
        self._say = say

    async def wait_begin(self, session: "Session", source: "Connection") -> "Session | Connection | None":
        """Wait for what a connection begins with.

        A preempt channel says nothing until the destination asks for pages over the main channel. What was redirected
        may be no migration at all; see `server_first`. When no more migrations are taken, connections that say
        nothing and belong to none are let go.

        Returns:
            The migration that it is the preempt channel of; or the destination's connection, where the destination
            spoke first; or None, and the session has the opening, if there is one.

        Raises:
            RefusedError: It is the proxy's own.
            PeerError: The destination of a silent one cannot be reached.
        """
        greeted: Connection | None = None
        problem: ProxyError | None = None

        async def begin(scope: trio.CancelScope) -> None:
            if not await session.wait_begin():
                self._say(f"{source.name} connected and left without a word")
            scope.cancel()

        async def claim(scope: trio.CancelScope) -> None:
            await trio.sleep(_SILENCE)
            await self._under_way.until(
                lambda: (
                    self._under_way.find(session.key, _wants_preempt) is not None
                    or (self._under_way.draining and self._under_way.find(session.key) is None)
                )
            )
            scope.cancel()

        async def dial_on(scope: trio.CancelScope) -> None:
            nonlocal greeted, problem
            await trio.sleep(SILENCE)
            try:
                self._route.check_not_own(source)
                destination = await session.dial()
                session.take(destination)
                await wait_first_word(destination)
                greeted = destination
            except (RefusedError, PeerError) as error:
                problem = error
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin, nursery.cancel_scope)
            nursery.start_soon(claim, nursery.cancel_scope)
            if self._route.redirects:
                nursery.start_soon(dial_on, nursery.cancel_scope)
        if session.opening or session.gone:
            return None
        if problem is not None:
            session.reject()
            raise problem
        return self._under_way.find(session.key, _wants_preempt) or greeted

    async def carry_channel(self, session: "Session", source: "Connection") -> None:
        """Carry a multifd channel of the newest migration; the destination takes it after the main channel only."""
        opening = bytes(session.opening)
        guest = channel_guest(opening)

        def takes_it(migration: "Session") -> bool:
            return migration.dialled.is_set() and migration.guest in (None, guest)

        with trio.move_on_after(_CHANNEL_WAIT):
            await self._under_way.until(lambda: self._under_way.find(session.key, takes_it) is not None)
        migration = self._under_way.find(session.key, takes_it)
        if migration is None:
            self._say(f"{source.name}: a multifd channel without its migration")
            session.reject()
            return
        migration.guest = guest
        await migration.channels.carry_multifd(source, opening, session.dial)


def _wants_preempt(session: "Session") -> bool:
    """Tell whether a migration may be that of a connection that says nothing."""
    return session.wants_preempt


def is_recoverable(session: "Session") -> bool:
    """Tell whether a migration's source may come back to it."""
    return session.recoverable
