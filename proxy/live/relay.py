"""The relay: accepts migrations and runs a session for each, until it is told to stop."""

import errno
import gc
import signal
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from formats.channels.multifd import is_channel
from formats.frame.records import MAGIC
from formats.stream.package import is_recovery
from proxy.errors import ExitCode, PeerError, ProxyError, RefusedError
from proxy.live.allowed_sources import AllowedSources
from proxy.live.arrivals import Arrivals, is_recoverable
from proxy.live.server_first import carry
from proxy.live.session import Session
from proxy.live.session_config import SessionConfig
from proxy.live.under_way import UnderWay
from proxy.net.listening import Listener, listen_on
from proxy.stop_signals import STOP_SIGNALS, let_come

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from proxy.net.binding import Bound
    from proxy.net.connection import Connection
    from proxy.net.tls.roles import ServerTls
    from proxy.report.report import Report

_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED})
"""Errors of accept that pass by themselves."""

_BREATH: Final = 0.2
_PROGRESS_EVERY: Final = 10.0


@dataclass(slots=True)
class Relay:
    """Runs a session for every migration that comes, and brings each its further connections.

    Attributes:
        config: What the sessions have in common.
        once: Whether to take one migration and stop; what sends something else does not count.
        say: Takes one line for the operator.
        on_report: Takes the report of every migration that ended.
        tls: What sources speak; None for plain text.
        plain_too: Whether, with `tls`, they may speak plain text, too: redirected ones may be of either kind.
        on_hangup: Is called on SIGHUP, which ends nothing.
        sources: Who may connect.
    """

    config: SessionConfig
    once: bool
    say: "Callable[[str], None]"
    on_report: "Callable[[Report], None]"
    tls: "ServerTls | None" = None
    on_hangup: "Callable[[], None]" = lambda: None
    sources: AllowedSources = field(default_factory=AllowedSources)
    plain_too: bool = False
    _begun: int = 0
    _taken: bool = False
    _exit_code: ExitCode = ExitCode.OK
    _under_way: UnderWay = field(init=False, default_factory=UnderWay)
    _arrivals: Arrivals = field(init=False)

    def __post_init__(self) -> None:
        self._arrivals = Arrivals(
            self.config.route, self._under_way, lambda line: self.say(line), self.tls, plain_too=self.plain_too
        )

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
            self.config.judge.prepare()
            gc.freeze()  # what is loaded now stays; the collector need not look at it while a guest stands
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey_signals, signals, nursery.cancel_scope)
                nursery.start_soon(self._hear_hangups, hangups)
                async with trio.open_nursery() as sessions:
                    for one in bounds:
                        sessions.start_soon(self._accept, listen_on(one), sessions)
                nursery.cancel_scope.cancel()
        return ExitCode.FAILED if self.once and not self._taken else self._exit_code

    def stop(self) -> None:
        """Take no more migrations; those under way go on to their end, and their further connections are taken."""
        self._under_way.drain()

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
        await self._under_way.until(lambda: self._under_way.draining and not self._under_way)
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
        try:
            self.sources.check(source.host)
        except RefusedError as error:
            self.say(f"{source.name} is refused: {error}")
            source.reset()
            return
        try:
            session = Session(self.config, source)
        except RefusedError as error:
            self.say(f"{source.name} is refused: {error}")
            source.reset()
            return
        session.on_change = self._under_way.tell_change
        try:
            what = await self._arrivals.wait_begin(session)
            self.config.route.check_not_own(session.source)
        except RefusedError as error:
            self.say(f"{source.name} is refused: {error}")
            session.reject()
        except PeerError as error:
            self.say(f"{source.name}: {error}")
            session.reject()
        else:
            await self._serve_what(what, session, session.source)

    async def _serve_what(self, what: "Session | Connection | None", session: Session, source: "Connection") -> None:
        """Carry a connection that `Arrivals.wait_begin` has looked at."""
        if isinstance(what, Session):
            if not await what.channels.carry_preempt(source, session.way.dial):
                self.say(f"{source.name} connected and said nothing; the destination does not take it as a channel")
        elif what is not None:
            where = session.key[1]
            self.say(f"{source.name}: no migration, the destination speaks first; passed on as it is to {where}")
            try:
                await carry(source, what, tls_only=self.tls is not None and not self.plain_too)
            except PeerError as error:
                self.say(f"{source.name}: {error}")
            except RefusedError as error:
                self.say(f"{source.name} is refused: {error}")
        elif not session.opening:
            session.reject()
        elif is_channel(session.opening):
            await self._arrivals.carry_channel(session, source)
        elif is_recovery(session.opening) and (paused := self._under_way.find(session.key, is_recoverable)) is not None:
            paused.take_back(source, bytes(session.opening))
        elif self._under_way.draining or self._taken:
            session.reject()
        else:
            await self._serve_migration(session, source)

    # --- migrations

    async def _serve_migration(self, session: Session, source: "Connection") -> None:
        self._begun += 1
        counts = self.once and _brings_a_migration(session.opening)
        self._taken |= counts
        number, started = self._begun, trio.current_time()
        self.say(f"migration {number}: from {source.name} to {session.key[1]}")
        session.on_pause = lambda line: self.say(f"migration {number}: {line}")
        self._under_way.begin(session)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_progress, number, session.report)
            try:
                await session.run()
            finally:
                self._under_way.end(session)
                nursery.cancel_scope.cancel()
                self._end(number, session.report, trio.current_time() - started)
                if counts:
                    self._exit_code = session.report.exit_code
                    self.stop()
                self._under_way.tell_change()

    async def _tell_progress(self, number: int, report: "Report") -> None:
        while True:
            before = report.bytes_out
            await trio.sleep(_PROGRESS_EVERY)
            rate = (report.bytes_out - before) / _PROGRESS_EVERY
            self.say(f"migration {number}: {report.bytes_out >> 20} MiB passed, {rate / (1 << 20):.0f} MiB/s")

    def _end(self, number: int, report: "Report", seconds: float) -> None:
        self.say(f"migration {number}: {report.summary()}, {seconds:.1f} s")
        try:
            self.on_report(report)
        except OSError as error:
            self.say(f"migration {number}: cannot write the report: {error.strerror or error}")

    async def _hear_hangups(self, hangups: "AsyncIterator[int]") -> None:
        async for _ in hangups:
            try:
                self.on_hangup()
                self.say("SIGHUP: the report is written to a file opened anew; migrations go on")
            except ProxyError as error:
                self.say(f"SIGHUP: {error}; nothing has changed")

    async def _obey_signals(self, signals: "AsyncIterator[int]", everything: trio.CancelScope) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if self._under_way.draining:
                self.say(f"{name}: resetting the migrations under way")
                self._exit_code = ExitCode.FAILED
                everything.cancel()
                return
            self.say(f"{name}: no new migrations; send it again to reset those under way")
            self.stop()


def _brings_a_migration(opening: memoryview) -> bool:
    """Tell whether a connection that begins so may bring a migration, or the rest of one that was interrupted."""
    return MAGIC.startswith(bytes(opening[: len(MAGIC)])) or is_recovery(opening)
