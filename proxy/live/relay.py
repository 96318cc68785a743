"""The relay: accepts migrations and runs a session for each, until it is told to stop."""

import errno
import gc
import signal
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from formats.channels.multifd import channel_guest, is_channel
from formats.stream.package import is_recovery
from proxy.errors import ExitCode, PeerError, ProxyError, RefusedError
from proxy.live.server_first import SILENCE, carry, wait_first_word
from proxy.live.session import Session
from proxy.live.session_config import SessionConfig
from proxy.net.listening import Listener, listen_on
from proxy.stop_signals import STOP_SIGNALS, let_come

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from proxy.net.binding import Bound
    from proxy.net.connection import Connection
    from proxy.net.tls import ServerTls
    from proxy.report import Report

_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED})
"""Errors of accept that pass by themselves."""

_BREATH: Final = 0.2
_PROGRESS_EVERY: Final = 10.0
_CHANNEL_WAIT: Final = 10.0
"""Seconds that a channel waits for its migration, which may be accepted a little later."""

_SILENCE: Final = 0.05
"""Seconds after which a connection that says nothing may be a preempt channel; all others begin at once."""


@dataclass(slots=True)
class Relay:
    """Runs a session for every migration that comes, and brings each its further connections.

    Attributes:
        config: What the sessions have in common.
        once: Whether to take one migration and stop.
        say: Takes one line for the operator.
        on_report: Takes the report of every migration that ended.
        tls: What sources must speak; None for plain text.
    """

    config: SessionConfig
    once: bool
    say: "Callable[[str], None]"
    on_report: "Callable[[Report], None]"
    tls: "ServerTls | None" = None
    _begun: int = 0
    _exit_code: ExitCode = ExitCode.OK
    _draining: bool = False
    _sessions: list[Session] = field(default_factory=list)
    _changed: trio.Event = field(default_factory=trio.Event)

    async def run(self, *bounds: "Bound") -> ExitCode:
        """Take migrations from what is bound, until told to stop; then it is closed.

        After the first SIGTERM or SIGINT no more migrations are taken, and those under way go on to their end; a second
        one resets them.

        Returns:
            With `once`, what the one migration ended with, FAILED when none came; otherwise OK, or FAILED when
            migrations were reset.
        """
        with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
            let_come()
            self.config.judge.prepare()
            gc.freeze()  # what is loaded now stays; the collector need not look at it while a guest stands
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey_signals, signals, nursery.cancel_scope)
                async with trio.open_nursery() as sessions:
                    for one in bounds:
                        sessions.start_soon(self._accept, listen_on(one), sessions)
                nursery.cancel_scope.cancel()
        return ExitCode.FAILED if self.once and not self._begun else self._exit_code

    def stop(self) -> None:
        """Take no more migrations; those under way go on to their end, and their further connections are taken."""
        self._draining = True
        for session in self._sessions:
            session.last_call()
        self._tell_change()

    # --- connections

    async def _accept(self, listener: Listener, sessions: trio.Nursery) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_done, nursery.cancel_scope)
                while (source := await self._next(listener)) is not None:
                    sessions.start_soon(self._serve, source)
                nursery.cancel_scope.cancel()
        finally:
            listener.close()

    async def _next(self, listener: Listener) -> "Connection | None":
        while True:
            try:
                return await listener.accept()
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                self.say(f"cannot accept a migration just now: {error.strerror}")
                await trio.sleep(_BREATH)

    async def _cancel_when_done(self, scope: trio.CancelScope) -> None:
        await self._until(lambda: self._draining and not self._sessions)
        scope.cancel()

    async def _serve(self, source: "Connection") -> None:
        """Carry a connection to its end; its trouble must not end the others."""
        try:
            await self._serve_any(source)
        except Exception as error:
            traceback.print_exc()
            self.say(f"{source.name}: internal error, please report it: {error!r}")
            source.reset()

    async def _serve_any(self, source: "Connection") -> None:
        """Find out what a connection is, and carry it."""
        if self.tls is not None:
            try:
                source = await self.tls.welcome(source)
            except ProxyError as error:
                self.say(f"{source.name}: {error}")
                return
        try:
            session = Session(self.config, source)
            session.on_change = self._tell_change
            what = await self._wait_begin(session, source)
            self.config.route.check_not_own(source)
        except RefusedError as error:
            self.say(f"{source.name} is refused: {error}")
            source.reset()
        except PeerError as error:
            self.say(f"{source.name}: {error}")
            source.reset()
        else:
            await self._serve_what(what, session, source)

    async def _serve_what(self, what: "Session | Connection | None", session: Session, source: "Connection") -> None:
        """Carry a connection that `_wait_begin` has looked at."""
        if isinstance(what, Session):
            if not await what.channels.carry_preempt(source, session.dial):
                self.say(f"{source.name} connected and said nothing; the destination does not take it as a channel")
        elif what is not None:
            where = session.key[1]
            self.say(f"{source.name}: no migration, the destination speaks first; passed on as it is to {where}")
            try:
                await carry(source, what)
            except PeerError as error:
                self.say(f"{source.name}: {error}")
        elif not session.opening:
            session.reject()
        elif is_channel(session.opening):
            await self._serve_channel(session, source)
        elif is_recovery(session.opening) and (paused := self._find(session.key, _is_recoverable)) is not None:
            paused.take_back(source, bytes(session.opening))
        elif self._draining or (self.once and self._begun):
            session.reject()
        else:
            await self._serve_migration(session, source)

    async def _wait_begin(self, session: Session, source: "Connection") -> "Session | Connection | None":
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
                self.say(f"{source.name} connected and left without a word")
            scope.cancel()

        async def claim(scope: trio.CancelScope) -> None:
            await trio.sleep(_SILENCE)
            await self._until(
                lambda: (
                    self._find(session.key, _wants_preempt) is not None
                    or (self._draining and self._find(session.key) is None)
                )
            )
            scope.cancel()

        async def dial_on(scope: trio.CancelScope) -> None:
            nonlocal greeted, problem
            await trio.sleep(SILENCE)
            try:
                self.config.route.check_not_own(source)
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
            if self.config.route.redirects:
                nursery.start_soon(dial_on, nursery.cancel_scope)
        if session.opening or session.gone:
            return None
        if problem is not None:
            session.reject()
            raise problem
        return self._find(session.key, _wants_preempt) or greeted

    async def _serve_channel(self, session: Session, source: "Connection") -> None:
        """Carry a multifd channel of the newest migration; the destination takes it after the main channel only."""
        opening = bytes(session.opening)
        guest = channel_guest(opening)

        def takes_it(migration: Session) -> bool:
            return migration.dialled.is_set() and migration.guest in (None, guest)

        with trio.move_on_after(_CHANNEL_WAIT):
            await self._until(lambda: self._find(session.key, takes_it) is not None)
        migration = self._find(session.key, takes_it)
        if migration is None:
            self.say(f"{source.name}: a multifd channel without its migration")
            session.reject()
            return
        migration.guest = guest
        await migration.channels.carry_multifd(source, opening, session.dial)

    def _find(self, key: tuple[str, str], fits: "Callable[[Session], bool]" = bool) -> Session | None:
        """Return the newest migration of a source's host and a destination that fits; None when none does."""
        return next((one for one in reversed(self._sessions) if one.key == key and fits(one)), None)

    async def _until(self, true: "Callable[[], bool]") -> None:
        """Wait until something is true of the migrations under way."""
        while not true():
            await self._changed.wait()

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- migrations

    async def _serve_migration(self, session: Session, source: "Connection") -> None:
        self._begun += 1
        number, started = self._begun, trio.current_time()
        self.say(f"migration {number}: from {source.name} to {session.key[1]}")
        session.on_pause = lambda line: self.say(f"migration {number}: {line}")
        self._sessions.append(session)
        self._tell_change()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_progress, number, session.report)
            try:
                await session.run()
            finally:
                self._sessions.remove(session)
                nursery.cancel_scope.cancel()
                self._end(number, session.report, trio.current_time() - started)
                if self.once:
                    self.stop()
                self._tell_change()

    async def _tell_progress(self, number: int, report: "Report") -> None:
        while True:
            before = report.bytes_out
            await trio.sleep(_PROGRESS_EVERY)
            rate = (report.bytes_out - before) / _PROGRESS_EVERY
            self.say(f"migration {number}: {report.bytes_out >> 20} MiB passed, {rate / (1 << 20):.0f} MiB/s")

    def _end(self, number: int, report: "Report", seconds: float) -> None:
        self.say(f"migration {number}: {report.summary()}, {seconds:.1f} s")
        if self.once:
            self._exit_code = report.exit_code
        try:
            self.on_report(report)
        except OSError as error:
            self.say(f"migration {number}: cannot write the report: {error.strerror or error}")

    async def _obey_signals(self, signals: "AsyncIterator[int]", everything: trio.CancelScope) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if self._draining:
                self.say(f"{name}: resetting the migrations under way")
                self._exit_code = ExitCode.FAILED
                everything.cancel()
                return
            self.say(f"{name}: no new migrations; send it again to reset those under way")
            self.stop()


def _is_recoverable(session: Session) -> bool:
    return session.recoverable


def _wants_preempt(session: Session) -> bool:
    return session.wants_preempt
