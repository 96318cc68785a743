"""Replaying: a captured stream is sent to a destination, and what the destination says to it is heard."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from formats.channels.return_path import POSTCOPY_REQUESTS, MessageType, ReturnPathListener
from formats.errors import FormatError
from formats.stream.trailing import Trailing
from proxy.errors import ExitCode, PeerError, ProxyError, RefusedError, exit_code_of
from proxy.net.dialling import dial
from proxy.net.pumps import together
from proxy.recording.destination import RETURN_BUFFER
from proxy.recording.reading_along import Follower
from proxy.recording.record_report import SCHEMA_VERSION
from proxy.stop_signals import STOP_SIGNALS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from proxy.net.address import Address
    from proxy.net.connection import Connection
    from proxy.net.tls.roles import ClientTls

_BUFFER: Final = 1 << 20
_STEP: Final = 64 << 10
"""Bytes sent at once; so it is known how far the destination let the stream come."""

_STEPS_PER_SECOND: Final = 20
"""Where there is a rate, steps are smaller: a stream that flows, and does not come in gulps."""

_WORD: Final = 10.0
"""Seconds that a destination that can say whether it has the guest may take for that, before it is told that no more
comes; whatever is no QEMU may wait for the latter."""


class Readable(Protocol):
    """What a stream is read from: an unbuffered binary file."""

    def readinto(self, buffer: bytearray, /) -> int | None:
        """Read into a buffer; 0 is the end."""


@dataclass(slots=True)
class ReplayReport:
    """What came of one replay.

    Attributes:
        bytes: Bytes that were handed to the destination's connection.
        sections: Sections, and parts of iterable ones, that were found in the stream so far.
        complete: Whether all of the stream was sent.
        return_path: Whether the stream opened a return path.
        pongs: How many PINGs the destination answered.
        confirmed: Whether the destination said that it has the guest; None when it had no way to say so.
        not_understood_from: From which offset on the stream was not understood; None when all of it was.
        reason: What went wrong; None when nothing did.
        trailing: What follows the stream where it was read from, as far as that was read; it was not sent.
        exit_code: What the command ends with.
    """

    bytes: int
    sections: int
    complete: bool
    return_path: bool
    pongs: int
    confirmed: bool | None
    not_understood_from: int | None
    reason: str | None
    trailing: Trailing
    exit_code: ExitCode

    def as_json(self) -> str:
        """Return the report as one line of JSON."""
        values = asdict(self)
        del values["exit_code"]
        values["trailing"] = self.trailing.as_dict() if self.trailing.length else None
        return json.dumps({"schema_version": SCHEMA_VERSION, **values})

    def summary(self) -> str:
        """Return the report in one line, for people."""
        if self.reason is not None:
            return self.reason
        line = f"{self.bytes} bytes sent, {self.sections} sections; "
        if self.confirmed:
            line += "the destination has the guest"
        else:
            line += (
                "not confirmed: the stream opened no return path, so the destination could not say if it has the guest"
            )
        if self.not_understood_from is not None:
            line += f"; not understood from offset {self.not_understood_from:#x} on"
        if self.trailing.length:
            line += f"; not sent: {self.trailing}"
        return line


class _Stopped(ProxyError):
    """The operator broke the replay off."""


class Replay:
    """Sends one stream to one destination."""

    def __init__(
        self,
        source: "Readable",
        *,
        rate: float | None = None,
        tls: "ClientTls | None" = None,
        take_trailing: bool = True,
    ) -> None:
        """Make a replay.

        Args:
            source: The stream.
            rate: Bytes to send each second; None for as many as the destination takes.
            tls: What is spoken to the destination; None for plain text.
            take_trailing: Whether more may follow the stream; it is not sent.
        """
        self._source = source
        self._tls = tls
        self._rate = rate
        self._step = _STEP if rate is None else max(1, min(_STEP, int(rate / _STEPS_PER_SECOND)))
        self._due = 0.0
        self._follower = Follower(take_trailing=take_trailing)
        self._listener = ReturnPathListener()
        self._unsettled = bytearray()
        self._sent = 0
        self._all_sent = False
        self._word = trio.Event()
        self._send_error: PeerError | None = None
        self._error: ProxyError | FormatError | None = _Stopped("the replay was stopped")
        self._buffer = bytearray(_BUFFER)

    async def run(self, destination: "Address", progress: "Callable[[int], None]") -> None:
        """Send the stream; `report` says how it went. Only cancellation is raised.

        Unless all went well the connection is reset, so that no destination takes a part for the whole.

        Args:
            destination: Where the destination listens.
            progress: Is told after each step how many bytes were sent in it.
        """
        connection: Connection | None = None
        try:
            # Before the dialling: a QEMU that waits takes one connection, and exits when that brings something else.
            opening, _ = await self._follower.begin(b"", self._read)
            connection = await dial(destination, tls=self._tls)
            await together(self._forward(connection, opening, progress), self._backward(connection))
            self._error = self._send_error
        except (ProxyError, FormatError) as error:
            self._error = error
        finally:
            if connection is not None and self._error is None:
                connection.close()
            elif connection is not None:
                connection.reset()

    async def _read(self) -> memoryview:
        """Read on in the stream; in a thread, because a pipe may be slow."""
        length = await trio.to_thread.run_sync(self._source.readinto, self._buffer, abandon_on_cancel=True)
        return memoryview(self._buffer)[:length]

    async def _forward(
        self, destination: "Connection", data: bytes | memoryview, progress: "Callable[[int], None]"
    ) -> None:
        try:
            while len(data) and not self._follower.trailing.length:
                await self._send_settled(destination, data, progress)
                data = await self._read()
                self._follower.follow(data)
            await self._send_settled(destination, data, progress)
            if self._follower.cut:
                assert self._follower.problem is not None
                raise self._follower.problem
            self._all_sent = True
            if self._follower.return_path:
                # As QEMU does; and a proxy takes an end before that for a source that has given up.
                with trio.move_on_after(_WORD):
                    await self._word.wait()
            await destination.finish()
        except PeerError as error:
            # What the destination said before it broke the connection is still to be heard.
            self._send_error = error

    async def _send_settled(
        self, destination: "Connection", data: bytes | memoryview, progress: "Callable[[int], None]"
    ) -> None:
        """Send what is known to be the stream's, and keep the rest; `data` is what was read last."""
        length = self._follower.settled - self._sent
        if not self._unsettled and length >= len(data):
            await self._send(destination, memoryview(data), progress)
            return
        self._unsettled += data
        settled = bytes(self._unsettled[:length])
        del self._unsettled[:length]
        await self._send(destination, memoryview(settled), progress)

    async def _send(self, destination: "Connection", data: memoryview, progress: "Callable[[int], None]") -> None:
        for start in range(0, len(data), self._step):
            step = data[start : start + self._step]
            if self._rate is not None:
                await trio.sleep_until(self._due)
                # Not from when it was due: what a slow destination held up is not caught up with.
                self._due = trio.current_time() + len(step) / self._rate
            await destination.send(step)
            self._sent += len(step)
            progress(len(step))

    async def _backward(self, destination: "Connection") -> None:
        try:
            await self._listen(destination)
        finally:
            self._word.set()

    async def _listen(self, destination: "Connection") -> None:
        buffer = memoryview(bytearray(RETURN_BUFFER))
        while length := await destination.receive(buffer):
            self._listener.listen(buffer[:length])
            if self._listener.shut is not None:
                self._word.set()
            for kind in sorted(POSTCOPY_REQUESTS & self._listener.heard.keys()):
                raise RefusedError(
                    f"the destination asks for what only a running source has ({MessageType(kind).name}): this is the "
                    "stream of a postcopy migration, and cannot be replayed"
                )
            if self._all_sent and self._listener.shut is not None:
                return
        # One that has the whole stream may end before it was told that no more comes.
        has_all = self._all_sent or (self._follower.complete and self._sent == self._follower.settled)
        if not has_all and self._send_error is None:
            raise PeerError("destination", self._listener.ending)

    def report(self) -> ReplayReport:
        """Tell what came of the replay."""
        follower, listener = self._follower, self._listener
        return_path = follower.return_path or bool(listener.heard)
        confirmed = listener.shut == 0 if return_path else None
        reason, code = self._outcome(confirmed)
        return ReplayReport(
            bytes=self._sent,
            sections=follower.sections,
            complete=self._all_sent,
            return_path=return_path,
            pongs=listener.heard[MessageType.PONG],
            confirmed=confirmed,
            not_understood_from=follower.not_understood_from,
            reason=reason,
            trailing=follower.trailing,
            exit_code=code,
        )

    def _outcome(self, confirmed: bool | None) -> tuple[str | None, ExitCode]:
        """Return what went wrong, and the exit code; once the guest has arrived, nothing on the connection can."""
        if confirmed or (confirmed is None and self._error is None and self._all_sent):
            return None, ExitCode.OK
        error = self._error or PeerError("destination", self._listener.ending)
        if not self._sent or not isinstance(error, PeerError | _Stopped):
            return str(error), exit_code_of(error)
        if not self._all_sent:
            where = self._follower.section_at(self._sent - 1)
            how = f"{error}, after {self._sent} bytes had been sent, the last of them in {where}"
        elif confirmed is None or isinstance(error, _Stopped):
            how = f"{error}, after all {self._sent} bytes had been sent, and it is not known which host has the guest"
        else:
            how = f"all {self._sent} bytes were sent, and the destination did not take the guest: {error}"
        return (f"{how}; its own log says why" if isinstance(error, PeerError) else how), error.exit_code


async def replay(it: Replay, destination: "Address", progress: "Callable[[int], None]") -> ReplayReport:
    """Send a stream to a destination, and tell what came of it; SIGTERM and SIGINT break it off with a reset."""
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, signals, nursery.cancel_scope)
            await it.run(destination, progress)
            nursery.cancel_scope.cancel()
    return it.report()


async def _obey_signals(signals: "AsyncIterator[int]", everything: trio.CancelScope) -> None:
    async for _ in signals:
        everything.cancel()
