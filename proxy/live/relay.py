"""The relay: accepts migrations and runs a session for each, until it is told to stop."""

import errno
import gc
import signal
import traceback
from typing import TYPE_CHECKING, Final

import trio

from formats.channels.multifd import is_channel
from formats.errors import ForeignStreamError, FormatError
from formats.stream.file_header import read_file_header
from formats.stream.package import is_recovery
from proxy.errors import ExitCode, PeerError, ProxyError, RefusedError, unforeseen
from proxy.live.arrivals import Arrivals, brings_a_migration, is_recoverable, passes_unread
from proxy.live.server_first import carry
from proxy.live.session import Session
from proxy.live.under_way import UnderWay
from proxy.live.watching import Arrived
from proxy.log import about
from proxy.net.aside import aside
from proxy.net.listening import Listener, listen_on
from proxy.net.splicing import start_carriers
from proxy.stop_signals import STOP_SIGNALS, let_come

if TYPE_CHECKING:
    import logging
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from proxy.live.session_config import SessionConfig
    from proxy.live.watching import Watcher
    from proxy.log import Log
    from proxy.net.binding import Bound
    from proxy.net.connection import Connection
    from proxy.report.report import Report

_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED})
"""Errors of accept that pass by themselves."""

_BREATH: Final = 0.2
_PROGRESS_EVERY: Final = 10.0


class Relay:
    """Runs a session for every migration that comes, and brings each its further connections.

    Attributes:
        config: What the sessions have in common; another one counts for those that come from then on.
        under_way: The migrations that are under way.
    """

    def __init__(
        self,
        config: "SessionConfig",
        log: "logging.Logger",
        on_report: "Callable[[Report], None]",
        *,
        once: bool = False,
        reload: "Callable[[], SessionConfig | None]" = lambda: None,
        watchers: "Iterable[Watcher]" = (),
        companions: "Iterable[Callable[[], Awaitable[None]]]" = (),
    ) -> None:
        """Make a relay.

        Args:
            config: What the sessions have in common.
            log: Takes lines for the operator.
            on_report: Takes the report of every migration that ended.
            once: Whether to take one migration and stop; what sends something else does not count.
            reload: Is called on SIGHUP, in a thread, and returns what counts for the migrations from then on, if that
                is to change. It raises ProxyError when that cannot be read; then nothing changes.
            watchers: Are told what happens.
            companions: What runs beside it, as long as it does.
        """
        self.config = config
        self.under_way = UnderWay()
        self._log = log
        self._on_report = on_report
        self._once = once
        self._reload = reload
        self._watchers = tuple(watchers)
        self._companions = tuple(companions)
        self._taken = False
        self._exit_code = ExitCode.OK
        self._arrivals = Arrivals(self.under_way, log)
        self._connections = 0

    async def run(self, *bounds: "Bound") -> ExitCode:
        """Take migrations from what is bound, until told to stop; then it is closed.

        After the first SIGTERM or SIGINT no more migrations are taken, and those under way go on to their end; a second
        one resets them.

        Returns:
            With `once`, what the one migration ended with, FAILED when none came; otherwise OK, or FAILED when
            migrations were reset.
        """
        with (
            trio.open_signal_receiver(*STOP_SIGNALS) as signals,
            trio.open_signal_receiver(signal.SIGHUP) as hangups,
        ):
            let_come()
            self.config.prepare()
            start_carriers()
            gc.freeze()  # what is loaded now stays; the collector need not look at it while a guest stands
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey_signals, signals, nursery.cancel_scope)
                nursery.start_soon(self._hear_hangups, hangups)
                for companion in self._companions:
                    nursery.start_soon(companion)
                async with trio.open_nursery() as sessions:
                    for one in bounds:
                        sessions.start_soon(self._accept, listen_on(one), sessions)
                nursery.cancel_scope.cancel()
        return ExitCode.FAILED if self._once and not self._taken else self._exit_code

    def stop(self) -> None:
        """Take no more migrations; those under way go on to their end, and their further connections are taken."""
        self.under_way.drain()
        for watcher in self._watchers:
            watcher.drains()

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
            except MemoryError:  # nothing is said: words take memory, too
                await trio.sleep(_BREATH)
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                self._log.info(f"cannot accept a migration just now: {error.strerror}")
                await trio.sleep(_BREATH)

    async def _cancel_when_done(self, scope: trio.CancelScope) -> None:
        await self.under_way.until(lambda: self.under_way.draining and not self.under_way)
        scope.cancel()

    async def _serve(self, source: "Connection") -> None:
        """Carry a connection to its end; its trouble must not end the others."""
        self._connections += 1
        try:
            await self._serve_any(source)
        except Exception as error:
            traceback.print_exc()
            self._log.error(f"{source.name}: {unforeseen(error)}")
            source.reset()
        finally:
            self._connections -= 1

    async def _serve_any(self, source: "Connection") -> None:
        """Find out what a connection is, and carry it."""
        limits = self.config.limits
        if self._connections > limits.connections:
            source.reset()
            self._tell(Arrived.TOO_MANY)
            self._log.warning(
                f"{source.name} is refused: there are {limits.connections} connections (--max-connections)"
            )
            return
        session: Session | None = None
        try:
            self.config.sources.check(source.host)
            session = Session(self.config, source, self.under_way.turns)
            session.on_change = self.under_way.tell_change
            with trio.fail_after(limits.begin):
                what = await self._arrivals.wait_begin(session)
            session.config.route.check_not_own(session.source)
        except RefusedError as error:
            self._refuse(source, session, error)
        except PeerError as error:
            self._tell(Arrived.BROKEN)
            self._log.info(f"{source.name}: {error}")
            _reset(source, session)
        except trio.TooSlowError:
            self._tell(Arrived.SILENT)
            self._log.info(f"{source.name} did not say within {limits.begin:g} seconds what it is")
            _reset(source, session)
        else:
            await self._serve_what(what, session, session.source)

    def _refuse(self, source: "Connection", session: Session | None, error: RefusedError) -> None:
        self._tell(Arrived.REFUSED)
        self._log.warning(f"{source.name} is refused: {error}")
        _reset(source, session)

    def _tell(self, what: Arrived) -> None:
        for watcher in self._watchers:
            watcher.arrived(what)

    async def _serve_what(self, what: "Session | Connection | None", session: Session, source: "Connection") -> None:
        """Carry a connection that `Arrivals.wait_begin` has looked at."""
        if isinstance(what, Session):
            self._tell(Arrived.PREEMPT)
            if not await what.channels.carry_preempt(source, bytes(session.opening), session.way.dial):
                self._log.info(
                    f"{source.name} connected and said nothing; the destination does not take it as a channel"
                )
        elif what is not None:
            await self._pass_on(session, source, what)
        elif not session.opening:
            self._tell(Arrived.SILENT)
            session.reject()
        elif is_channel(session.opening):
            self._tell(Arrived.MULTIFD)
            await self._arrivals.carry_channel(session, source)
        elif is_recovery(session.opening) and (paused := self.under_way.find(session.key, is_recoverable)) is not None:
            self._tell(Arrived.RECOVERY)
            paused.take_back(source, bytes(session.opening))
        elif passes_unread(session) and (unread := self.under_way.find(session.key, passes_unread)) is not None:
            self._tell(Arrived.MULTIFD)
            await self._arrivals.carry_unread_channel(session, unread)
        else:
            await self._serve_new(session, source)

    async def _serve_new(self, session: Session, source: "Connection") -> None:
        """Carry what belongs to nothing that is under way, if it may come."""
        if self.under_way.draining or self._taken:
            self._tell(Arrived.REFUSED)
            session.reject()
        elif not brings_a_migration(session.opening) and not passes_unread(session):
            self._tell(Arrived.GARBAGE)
            self._log.warning(f"{source.name} is refused: {_what_else(session.opening)}")
            session.reject()
        elif self.under_way.dialled >= session.config.limits.migrations:
            self._tell(Arrived.TOO_MANY)
            self._log.warning(
                f"{source.name} is refused: {len(self.under_way)} migrations are under way (--max-migrations)"
            )
            session.reject()
        else:
            self._tell(Arrived.MIGRATION)
            await self._serve_migration(session, source)

    async def _pass_on(self, session: Session, source: "Connection", destination: "Connection") -> None:
        self._tell(Arrived.PASSED_ON)
        where, config = session.key[1], session.config
        self._log.info(f"{source.name}: no migration, the destination speaks first; passed on as it is to {where}")
        try:
            await carry(source, destination, tls_only=config.tls is not None and not config.plain_too)
        except PeerError as error:
            self._log.info(f"{source.name}: {error}")
        except RefusedError as error:
            self._log.warning(f"{source.name} is refused: {error}")

    # --- migrations

    async def _serve_migration(self, session: Session, source: "Connection") -> None:
        self._taken |= self._once
        began, log = trio.current_time(), about(self._log, session.report.id)
        log.info(f"from {source.name} to {session.key[1]}")
        session.on_warning = log.warning
        self.under_way.begin(session)
        for watcher in self._watchers:
            watcher.begins(session)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_progress, log, session)
            try:
                await session.run()
            finally:
                self.under_way.end(session)
                nursery.cancel_scope.cancel()
                self._end(log, session, trio.current_time() - began)
                if self._once:
                    self._exit_code = session.report.exit_code
                    self.stop()
                self.under_way.tell_change()

    async def _tell_progress(self, log: "Log", session: Session) -> None:
        while True:
            before = session.report.bytes_out
            await trio.sleep(_PROGRESS_EVERY)
            passed = session.report.bytes_out
            if not session.recovery.waits:  # it was said once that it is paused
                log.info(f"{passed >> 20} MiB passed, {(passed - before) / _PROGRESS_EVERY / (1 << 20):.0f} MiB/s")

    def _end(self, log: "Log", session: Session, seconds: float) -> None:
        report = session.report
        say = log.info if report.exit_code is ExitCode.OK else log.warning
        say(f"{report.summary()}, {seconds:.1f} s")
        for watcher in self._watchers:
            watcher.ends(session, report)
        try:
            self._on_report(report)
        except OSError as error:
            log.error(f"cannot write the report: {error.strerror or error}")

    def _read_again(self) -> "SessionConfig":
        """Return what counts from now on, with all loaded that verdicts need; in a thread, for that takes a while."""
        config = self._reload() or self.config
        config.prepare()
        return config

    async def _hear_hangups(self, hangups: "AsyncIterator[int]") -> None:
        async for _ in hangups:
            well = False
            for watcher in self._watchers:
                watcher.reloads()
            try:
                self.config = await aside("reading anew", self._read_again)
                well = True
            except (ProxyError, FormatError) as error:
                self._log.error(f"SIGHUP: {error}; nothing has changed")
            except Exception as error:
                # It must not end the migrations under way.
                traceback.print_exc()
                self._log.error(f"SIGHUP: {unforeseen(error)}; nothing has changed")
            for watcher in self._watchers:
                watcher.reloaded(well=well)

    async def _obey_signals(self, signals: "AsyncIterator[int]", everything: trio.CancelScope) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if self.under_way.draining:
                self._log.info(f"{name}: resetting the migrations under way")
                self._exit_code = ExitCode.FAILED
                everything.cancel()
                return
            self._log.info(f"{name}: no new migrations; send it again to reset those under way")
            self.stop()


def _reset(source: "Connection", session: Session | None) -> None:
    if session is None:
        source.reset()
    else:
        session.reject()


def _what_else(opening: memoryview) -> str:
    """Say what begins so, and is no migration."""
    try:
        read_file_header(opening, ended=True)
    except ForeignStreamError as error:
        return str(error)
    return "this is no migration stream"
