"""One migration, from the connection that its source made to its end."""

import mmap
import traceback
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

import trio

from formats.errors import FormatError
from formats.stream.file_header import tells_what_it_is
from formats.stream.package import is_recovery
from proxy.errors import PeerError, ProxyError, RefusedError, unforeseen
from proxy.live.give_back import give_back
from proxy.live.leg import Leg
from proxy.live.recovery import PAUSED, Recovery
from proxy.live.side_channels import SideChannels
from proxy.live.turns import Turns
from proxy.live.way import Way
from proxy.net.address import FdAddress, StdioAddress
from proxy.net.aside import aside
from proxy.old_source import fall_silent, may_be_old
from proxy.report.report import Cause, Report, cause_of
from proxy.rewriter.rewriter import Rewriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.frame.event import Raw
    from proxy.judging.judge import Judge
    from proxy.live.session_config import SessionConfig
    from proxy.net.connection import Connection
    from proxy.net.tls.roles import ServerTls

_BUFFER: Final = 1 << 20
_OPENING: Final = 512
"""Bytes received at once from a connection of which nothing is known yet; there may be thousands that say nothing."""
_LET_BEGIN_PATIENCE: Final = 1.0


class Session:
    """Carries one migration from an accepted connection to the destination.

    However it ends, both connections are closed: cleanly when both peers ended cleanly, with a reset otherwise. In
    postcopy a broken connection does not end it: it pauses, as both QEMUs do, until the source comes back.

    Raises RefusedError when the connection may go nowhere; see `Route.destination_of`.

    Attributes:
        key: The source's host and the destination; all connections of one migration have the same.
        dialled: Set when the main channel has reached the destination; other channels may follow then.
        advised: Set when the source has announced that it may go over to postcopy.
        way: The way to its destination.
        config: What the operator had decided when it came.
        turns: Whose turn it is to judge, of all sessions.
        on_change: Called when `dialled`, `advised`, `wants_preempt` or `recoverable` may have changed.
        on_warning: Takes one line for the operator, as when the migration pauses.
        recovery: Where it waits while it is paused in postcopy.
    """

    def __init__(self, config: "SessionConfig", source: "Connection", turns: Turns | None = None) -> None:
        self.way = Way(config.route, config.route.destination_of(source))
        self.key = (source.host, str(self.way.address))
        self.dialled = trio.Event()
        self.advised = trio.Event()
        self.on_change: Callable[[], None] = lambda: None
        self.on_warning: Callable[[str], None] = lambda _line: None
        self.config = config
        self.turns = turns or Turns()
        self._source = source
        self._destination: Connection | None = None
        self._leg: Leg | None = None
        self.recovery = Recovery(config.limits.recovery)
        self._all_sent = trio.Event()
        self._opening = memoryview(b"")
        self._left = False

    @property
    def report(self) -> Report:
        """What came of it, or has so far."""
        return self._rewriter.report

    @property
    def opening(self) -> memoryview:
        """What the source has sent first; all that `wait_begin` waits for, once that has returned True."""
        return self._opening

    @property
    def source(self) -> "Connection":
        """The connection that its source made, as it is spoken on now."""
        return self._source

    @property
    def gone(self) -> bool:
        """Whether the source left without a word."""
        return self._left

    @property
    def recoverable(self) -> bool:
        """Whether the source may come back to it on a new connection."""
        return self._rewriter.postcopy

    @property
    def wants_preempt(self) -> bool:
        """Whether a connection that says nothing may be its postcopy-preempt channel."""
        begun = self.dialled.is_set() and self.advised.is_set()
        return begun and not self.channels.has_preempt and not self.recovery.waits

    # What only migrations need, and not the thousands of connections that may say nothing.

    @cached_property
    def _judge(self) -> "Judge":
        return self.config.judge_of(self.way.host).fresh()

    @cached_property
    def _rewriter(self) -> Rewriter:
        return Rewriter(
            self._judge,
            live=True,
            allow_no_return_path=self.config.allow_no_return_path,
            device_state_limit=self.config.device_state_limit,
            source=self.config.source,
            defer=self._judge.trial is not None,
        )

    @cached_property
    def channels(self) -> SideChannels:
        """The connections beside its main one."""
        return SideChannels(self._all_sent, self._rewriter, self.report, self._lose)

    @cached_property
    def _buffer(self) -> memoryview:
        """What is received into; mapped, so that it goes back to the system."""
        return memoryview(mmap.mmap(-1, _BUFFER))

    # --- what the relay brings

    def take_back(self, source: "Connection", opening: bytes) -> None:
        """Go on, in postcopy, with a new connection from the source; the one before is dead, noticed or not."""
        waits = self.recovery.waits
        self.recovery.bring(source, opening)
        if not waits:
            self._lose(PeerError("source", "came back on a new connection"))

    def last_call(self) -> None:
        """Wait for no recovery any more."""
        self.recovery.last_call()

    async def welcome(self, tls: "ServerTls") -> None:
        """Shake hands with a source that speaks TLS.

        Raises:
            PeerError: It is not let in; its connection is closed.
        """
        connection = await tls.welcome(self._source)
        self._source, self.way.over_tls = connection, True
        self.report.source_tls = connection.common_name

    async def wait_begin(self) -> bool:
        """Wait for the source's first bytes, and a migration's whole file header, into little memory.

        It may be cancelled and called again. False when the source leaves without a word, as a port scan does.
        """
        with suppress(PeerError):
            while not tells_what_it_is(self._opening):
                buffer = memoryview(bytearray(_OPENING))
                received = await self._source.receive(buffer)
                if not received:
                    break
                self._opening = memoryview(bytes(self._opening) + bytes(buffer[:received]))
        if not self._opening:
            self._left = True
            self._source.close()
        return bool(self._opening)

    # --- the migration

    async def run(self) -> None:
        """Carry the migration that began to its end; `report` says how it went. Only cancellation is raised.

        The destination is not dialled before the source has shown that it sends a migration: a QEMU that waits for one
        takes a single connection, and exits when that brings something else.
        """
        clean = False
        self.report.begin(self._source.name, str(self.way.address))
        self.report.times.begin()
        try:
            await self._carry()
            clean = True
        except (FormatError, RefusedError) as error:
            self.report.refused(error)
            await self._let_begin()
            clean = await self._give_back()
        except ProxyError as error:
            self.report.failed(self._explained(error), cause_of(error))
            clean = await self._give_back()
        except Exception as error:
            # One migration's trouble must not end the others.
            traceback.print_exc()
            self.report.failed(unforeseen(error), Cause.INTERNAL)
            clean = await self._give_back()
        except BaseException:
            self.report.failed("the proxy was stopped", Cause.STOPPED)
            raise
        finally:
            self.report.channel_bytes = self.channels.carried
            self.report.end()
            self._close(clean=clean)
            self._judge.close()
            self.channels.end(clean=clean)
            self.recovery.reset()

    async def _carry(self) -> None:
        """Carry it on as many connections as it takes."""
        leg = self._first_leg
        if is_recovery(self.opening):
            # Its vCPUs were judged before, by a proxy that is gone; what comes now is memory.
            self._rewriter.recover()
            self.recovery.bring(self._source, bytes(self.opening))
            leg = self._next_leg
        while True:
            try:
                await leg()
            except PeerError as error:
                if not self._rewriter.postcopy or self._shut is not None:
                    raise
                await self._pause(error)
                leg = self._next_leg
            else:
                return

    async def _first_leg(self) -> None:
        self.config.check_known(self.way.host)
        if self._judge.trial is not None:
            # Now, while the guest runs; it will stand when it is judged.
            await aside("asking KVM", partial(self._judge.open, self.way.tcp))
        await self.way.look(self.report, self._judge.host, self.on_warning)
        pieces = self._beginning()
        self._destination = await self._dial()
        self.dialled.set()
        self.on_change()
        await self._run_leg(self._destination, pieces)

    async def _next_leg(self) -> None:
        """Go on where a postcopy migration was interrupted."""
        self._source, opening = self.recovery.take()
        self._leg = None
        self._destination = await self._dial()
        self.dialled.set()
        self.advised.set()
        self.on_change()
        self.report.recoveries += 1
        await self._run_leg(self._destination, self._rewriter.feed(opening))

    async def _run_leg(self, destination: "Connection", pieces: "list[Raw]") -> None:
        self._leg = Leg(
            self._source,
            destination,
            self._rewriter,
            buffer=self._buffer,
            config=self.config,
            turns=self.turns,
            on_release=self._tell_released,
        )
        await self._leg.run(pieces)

    def _tell_released(self) -> None:
        """Tell what may follow from what has gone on to the destination."""
        if self._rewriter.complete:
            self._all_sent.set()
        if self._rewriter.postcopy_advised and not self.advised.is_set():
            self.advised.set()
            self.on_change()

    async def _pause(self, error: PeerError) -> None:
        """Wait for the source to come back, or for the last call."""
        self.channels.cut()
        self._close(clean=False)
        if not self.recovery.returned:
            self.on_warning(f"{error}; {PAUSED}")
            await self.recovery.wait()
        if not self.recovery.returned:
            raise PeerError(error.peer, f"{str(error).removeprefix(f'the {error.peer} ')}; {PAUSED}")

    async def _let_begin(self) -> None:
        """See that the destination can notice that it gets no guest: bring it a preempt channel, if it has none yet.

        QEMU 7.2 reads nothing before it has that channel, and would wait for ever; others need it no more, or listen no
        more. Source: QEMU 7.2 `migration/migration.c` (`migration_ioc_process_incoming`).
        """
        lacks_it = self.dialled.is_set() and self._rewriter.postcopy_advised and not self.channels.preempt_reached
        if lacks_it and not isinstance(self.way.address, FdAddress | StdioAddress):
            with trio.move_on_after(_LET_BEGIN_PATIENCE), suppress(PeerError):
                (await self.way.dial()).close()

    async def _give_back(self) -> bool:
        """Have the source keep its guest; return whether it had to be told, as in postcopy, and was."""
        if self._destination is not None:
            self._destination.reset()
        if not self._rewriter.source_waits_in_postcopy:
            if self._rewriter.source_waits and may_be_old(self.report.machine):
                await fall_silent(self._source, self._buffer)
            return False
        self.channels.swallow()
        return await give_back(self._source, self._rewriter, self._buffer)

    def reject(self) -> None:
        """Reset the source's connection, and what was made for it: nothing becomes of them."""
        self._source.reset()
        self.way.discard()

    async def _dial(self) -> "Connection":
        """Connect the main channel; raises PeerError."""
        connection = await self.way.dial()
        self.report.destination_tls = self.way.tls
        return connection

    def _lose(self, error: PeerError) -> None:
        """End the leg at hand; once the destination has said that it has the guest, no loss takes that back."""
        if self._leg is not None and self._shut != 0:
            self._leg.lose(error)

    @property
    def _shut(self) -> int | None:
        """What the destination's SHUT said; None when none has come."""
        return None if self._leg is None else self._leg.shut

    def _close(self, *, clean: bool) -> None:
        for connection in (self._source, self._destination):
            if connection is not None and clean:
                connection.close()
            elif connection is not None:
                connection.reset()

    def _beginning(self) -> "list[Raw]":
        """Feed what has come first; return what may go on."""
        return self._rewriter.feed(self._opening) or self._rewriter.end()

    def _explained(self, error: ProxyError) -> str:
        if self._rewriter.postcopy and self._shut is None:
            return str(error)
        got_all = self.dialled.is_set() and self._rewriter.complete
        if isinstance(error, PeerError) and error.peer == "destination" and got_all and self._shut != 0:
            return (
                f"the destination got the whole stream and did not take the guest: {error}; its own log says why, and "
                "the source goes on"
            )
        return str(error)
