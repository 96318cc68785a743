"""What a connection is that has arrived: a migration, one of its channels, a recovery, or no migration at all."""

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from formats.channels.multifd import channel_guest
from formats.channels.preempt import may_be_preempt
from formats.frame.records import MAGIC
from formats.stream.package import is_recovery
from formats.stream.refusals import TLS_OPENING
from proxy.errors import PeerError, ProxyError, RefusedError
from proxy.live.server_first import SILENCE, wait_first_word
from proxy.net.tls.roles import speaks_tls
from proxy.policy.policy import Mode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.live.session import Session
    from proxy.live.under_way import UnderWay
    from proxy.log import Log
    from proxy.net.connection import Connection
    from proxy.net.tls.roles import ServerTls

_CHANNEL_WAIT: Final = 10.0
"""Seconds that a channel waits for its migration, which may be accepted a little later."""

_OVERTAKES: Final = 0.5
"""Seconds by which a channel may be accepted before the main connection, which QEMU makes first."""

_SILENCE: Final = 0.05
"""Seconds after which a connection that says nothing may be a preempt channel; all others begin at once."""


class Arrivals:
    """Finds out what connections are, by what they begin with and by the migrations that are under way."""

    def __init__(self, under_way: "UnderWay", log: "Log") -> None:
        """Make it for one relay.

        Args:
            under_way: The migrations that connections may belong to.
            log: Takes lines for the operator.
        """
        self._under_way = under_way
        self._log = log

    async def wait_begin(self, session: "Session") -> "Session | Connection | None":
        """Wait for what a connection begins with; where it begins TLS, for what comes within.

        Returns and raises as `_first_word` does; besides

        Raises:
            RefusedError: It speaks plain text, and may not.
            PeerError: It is not let in.
        """
        config = session.config
        if config.tls is None:
            return await self._first_word(session, session.wait_begin)
        if not config.route.redirects and not config.plain_too:
            await session.welcome(config.tls)
            return await self._first_word(session, session.wait_begin)
        return await self._tls_or_plain(session, config.tls)

    async def _tls_or_plain(self, session: "Session", tls: "ServerTls") -> "Session | Connection | None":
        """Let the first byte tell; a connection that is redirected may be one on which the destination speaks first."""
        encrypted = False

        async def look() -> bool:
            nonlocal encrypted
            encrypted = await speaks_tls(session.source)
            return encrypted or await session.wait_begin()

        found = await self._first_word(session, look)
        if encrypted:
            session.config.route.check_not_own(session.source)
            await session.welcome(tls)
            return await self._first_word(session, session.wait_begin)
        silent_channel = found is not None and found in self._under_way
        if not session.config.plain_too and (session.opening or silent_channel):
            raise RefusedError("it speaks plain text, and --require-tls has sources speak TLS")
        return found

    async def _first_word(
        self, session: "Session", wait: "Callable[[], Awaitable[bool]]"
    ) -> "Session | Connection | None":
        """Wait for what a connection begins with.

        A preempt channel says nothing until the destination asks for pages over the main channel, or has asked for some
        before a paused migration was recovered. What was redirected
        may be no migration at all; see `server_first`. When no more migrations are taken, connections that say
        nothing and belong to none are let go.

        Args:
            session: What the connection is taken for so far.
            wait: Waits for its first bytes; False when it leaves without a word.

        Returns:
            The migration that it is the preempt channel of; or the destination's connection, where the destination
            spoke first; or None, and the session has the opening, if there is one.

        Raises:
            RefusedError: It is the proxy's own.
            PeerError: The destination of a silent one cannot be reached.
        """
        begun = False
        with trio.move_on_after(_SILENCE):
            begun = await self._begins(session, wait)
        greeted: Connection | None = None
        if not begun and not session.gone:
            if session.config.route.redirects and not session.way.over_tls:
                begun, greeted = await self._either_word(session, wait)
            else:
                with trio.CancelScope() as scope, self._under_way.cancelling(scope, partial(self._claimed, session)):
                    begun = await self._begins(session, wait)
        if session.gone or (begun and not may_be_preempt(session.opening)):
            return None
        return self._under_way.find(session.key, partial(_wants_preempt, session)) or greeted

    async def _begins(self, session: "Session", wait: "Callable[[], Awaitable[bool]]") -> bool:
        begun = await wait()
        if not begun:
            self._log.info(f"{session.source.name} connected and left without a word")
        return begun

    def _claimed(self, session: "Session") -> bool:
        """Tell whether one that has said nothing belongs to a migration, or is let go."""
        if session.opening:
            return False
        return self._under_way.find(session.key, partial(_wants_preempt, session)) is not None or (
            self._under_way.draining and self._under_way.find(session.key) is None
        )

    async def _either_word(
        self, session: "Session", wait: "Callable[[], Awaitable[bool]]"
    ) -> "tuple[bool, Connection | None]":
        """Wait for the source's first word, or the destination's, which is dialled for it; returns as `_first_word`."""
        source, route = session.source, session.config.route
        greeted: Connection | None = None
        begun = False
        problem: ProxyError | None = None

        async def dial_on(scope: trio.CancelScope) -> None:
            nonlocal greeted, problem
            await trio.sleep(SILENCE - _SILENCE)
            if session.opening:
                return  # a part of a header: it is no server's client that waits
            try:
                route.check_not_own(source)
                destination = await session.way.reach()
                session.way.take(destination)
                await wait_first_word(destination)
                greeted = destination
            except (RefusedError, PeerError) as error:
                problem = error
            scope.cancel()

        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            nursery.start_soon(dial_on, scope)
            with self._under_way.cancelling(scope, partial(self._claimed, session)):
                begun = await self._begins(session, wait)
            scope.cancel()
        if problem is not None and not begun and not session.gone:
            session.reject()
            raise problem
        return begun, greeted

    async def carry_channel(self, session: "Session", source: "Connection") -> bool:
        """Carry a multifd channel of the newest migration; the destination takes it after the main channel only.

        Returns:
            Whether there is such a migration.
        """
        opening = bytes(session.opening)
        guest = channel_guest(opening)

        def takes_it(migration: "Session") -> bool:
            is_its_own = migration.channels.want_multifd(guest) and not _is_older(session, migration)
            return migration.dialled.is_set() and is_its_own

        with trio.move_on_after(_CHANNEL_WAIT):
            await self._under_way.until(lambda: self._under_way.find(session.key, takes_it) is not None)
        migration = self._under_way.find(session.key, takes_it)
        if migration is None:
            self._log.info(f"{source.name}: a multifd channel without its migration")
            session.reject()
            return False
        migration.channels.name_guest(guest)
        await migration.channels.carry_multifd(source, opening, session.way.dial)
        return True

    async def carry_unread_channel(self, session: "Session", migration: "Session") -> None:
        """Carry a further connection of a migration that passes unread; which of its channels it is cannot be told."""
        await self._under_way.until(lambda: migration.dialled.is_set() or migration not in self._under_way)
        await migration.channels.carry_multifd(session.source, bytes(session.opening), session.way.dial)


def passes_unread(session: "Session") -> bool:
    """Tell whether a connection speaks TLS that does not end here, and whatever comes may pass: it is only watched."""
    config = session.config
    watched = config.tls is None and config.judge.policy.mode is Mode.OBSERVE
    return watched and bytes(session.opening[: len(TLS_OPENING)]) == TLS_OPENING


def _wants_preempt(silent: "Session", migration: "Session") -> bool:
    """Tell whether a migration may be that of a connection that says nothing."""
    return migration.wants_preempt and not _is_older(silent, migration)


def _is_older(connection: "Session", migration: "Session") -> bool:
    """Tell whether a connection came so long before a migration that it is a stranger's, and no channel of it."""
    return connection.source.since + _OVERTAKES < migration.source.since


def brings_a_migration(opening: memoryview) -> bool:
    """Tell whether a connection that begins so may bring a migration, or the rest of one that was interrupted."""
    return MAGIC.startswith(bytes(opening[: len(MAGIC)])) or is_recovery(opening)


def is_recoverable(session: "Session") -> bool:
    """Tell whether a migration's source may come back to it."""
    return session.recoverable
