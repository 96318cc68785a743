"""The relay: accepts migrations and runs a session for each, until it is told to stop."""

import errno
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from formats.multifd import is_channel
from proxy.errors import ExitCode, PeerError, RefusedError
from proxy.listening import Listener, listen
from proxy.server_first import carry, destination_speaks_first, stays_silent
from proxy.session import Session, SessionConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from proxy.address import Address
    from proxy.connection import Connection
    from proxy.report import Report

_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED})
"""Errors of accept that pass by themselves."""

_BREATH: Final = 0.2
_PROGRESS_EVERY: Final = 10.0
_CHANNEL_WAIT: Final = 10.0
"""Seconds that a multifd channel waits for its migration, which may be accepted a little later."""


@dataclass(slots=True)
class Relay:
    """Runs a session for every connection that a listener accepts.

    Attributes:
        config: What the sessions have in common.
        once: Whether to take one migration and stop.
        say: Takes one line for the operator.
        on_report: Takes the report of every migration that ended.
    """

    config: SessionConfig
    once: bool
    say: "Callable[[str], None]"
    on_report: "Callable[[Report], None]"
    _begun: int = 0
    _silent: set[trio.CancelScope] = field(default_factory=set)
    _exit_code: ExitCode = ExitCode.OK
    _draining: trio.Event = field(default_factory=trio.Event)
    _sessions: list[Session] = field(default_factory=list)
    _arrived: trio.Event = field(default_factory=trio.Event)

    async def run(self, *addresses: "Address") -> ExitCode:
        """Listen, and serve until told to stop.

        The first SIGTERM or SIGINT ends the listening and lets the migrations under way end; a second one resets them.

        Returns:
            With `once`, what the one migration ended with, FAILED when none came; otherwise OK, or FAILED when
            migrations were reset.

        Raises:
            ConfigError: An address cannot be listened on.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            listeners = await self._listen(addresses)
            for listener in listeners:
                self.say(f"listening on {listener.name}, for {self.config.route}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey_signals, signals, nursery.cancel_scope)
                async with trio.open_nursery() as sessions:
                    for listener in listeners:
                        sessions.start_soon(self._accept, listener, sessions)
                nursery.cancel_scope.cancel()
        return ExitCode.FAILED if self.once and not self._begun else self._exit_code

    def stop(self) -> None:
        """Accept no more; the migrations under way go on to their end."""
        self._draining.set()
        for scope in self._silent:
            scope.cancel()

    async def _listen(self, addresses: "Iterable[Address]") -> list[Listener]:
        listeners: list[Listener] = []
        try:
            for address in addresses:
                listeners += await listen(address)
            self.config.route.prepare(listeners)
        except BaseException:
            for listener in listeners:
                listener.close()
            raise
        return listeners

    async def _accept(self, listener: Listener, sessions: trio.Nursery) -> None:
        with trio.CancelScope() as scope:
            sessions.start_soon(self._cancel_when_draining, scope)
            try:
                while True:
                    try:
                        source = await listener.accept()
                    except OSError as error:
                        if error.errno not in _PASSING:
                            raise
                        self.say(f"cannot accept a migration just now: {error.strerror}")
                        await trio.sleep(_BREATH)
                        continue
                    if source is None:
                        return
                    sessions.start_soon(self._serve, source)
            finally:
                listener.close()

    async def _cancel_when_draining(self, scope: trio.CancelScope) -> None:
        await self._draining.wait()
        scope.cancel()

    async def _serve(self, source: "Connection") -> None:
        try:
            session = Session(self.config, source)
            if self.config.route.redirects and await self._is_no_migration(session, source):
                return
            if not await self._has_begun(session, source):
                return
            self.config.route.check_not_own(source)
        except RefusedError as error:
            self.say(f"{source.name} is refused: {error}")
            source.reset()
            return
        except PeerError as error:
            self.say(f"{source.name}: {error}")
            source.reset()
            return
        if is_channel(session.opening):
            await self._serve_channel(source, session)
            return
        if self.once and self._begun:
            session.reject()
            return
        self._begun += 1
        number, started = self._begun, trio.current_time()
        self.say(f"migration {number}: from {source.name} to {session.key[1]}")
        self._sessions.append(session)
        self._arrived.set()
        self._arrived = trio.Event()
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

    async def _serve_channel(self, source: "Connection", channel: Session) -> None:
        """Carry a multifd channel of the newest migration from the same source's host to the same destination.

        The destination takes it after the main channel only.
        """
        session: Session | None = None
        with trio.move_on_after(_CHANNEL_WAIT):
            while (newest := self._newest(channel.key)) is None:
                await self._arrived.wait()
            await newest.dialled.wait()
            session = newest
        if session is None:
            self.say(f"{source.name}: a multifd channel without its migration")
            channel.reject()
            return
        await session.carry_channel(source, bytes(channel.opening), channel.dial)

    def _newest(self, key: tuple[str, str]) -> Session | None:
        return next((session for session in reversed(self._sessions) if session.key == key), None)

    async def _is_no_migration(self, session: Session, source: "Connection") -> bool:
        """Carry a redirected connection on which the destination speaks first; see `proxy.server_first`.

        A connection of a migration, which is left to the caller, comes back with what was dialled meanwhile, if it was.
        """
        destination: Connection | None = None
        with trio.CancelScope() as scope:
            self._silent.add(scope)
            try:
                if self._draining.is_set():
                    scope.cancel()
                if not await stays_silent(source):
                    return False
                self.config.route.check_not_own(source)
                destination = await session.dial()
                session.take(destination)
                if not await destination_speaks_first(source, destination):
                    return False
            finally:
                self._silent.discard(scope)
        if scope.cancelled_caught or destination is None:
            session.reject()
            return True
        self.say(f"{source.name}: no migration, the destination speaks first; passed on as it is to {session.key[1]}")
        await carry(source, destination)
        return True

    async def _has_begun(self, session: Session, source: "Connection") -> bool:
        """Wait until a migration begins on a connection; when no more are taken, those that said nothing are closed."""
        with trio.CancelScope() as scope:
            self._silent.add(scope)
            try:
                if self._draining.is_set():
                    scope.cancel()
                begun = await session.wait_begin()
                if not begun:
                    self.say(f"{source.name} connected and left without a word")
                elif not self._draining.is_set():
                    return True
            finally:
                self._silent.discard(scope)
        session.reject()
        return False

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
            if self._draining.is_set():
                self.say(f"{name}: resetting the migrations under way")
                self._exit_code = ExitCode.FAILED
                everything.cancel()
                return
            self.say(f"{name}: no new migrations; send it again to reset those under way")
            self.stop()
