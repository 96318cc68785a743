"""Recording: one migration is taken, and what its source sends is kept, byte for byte, understood or not.

With a destination the bytes go on to it, and its words go back, untouched. Without one the recorder is the destination,
one that in the end does not take the guest: the source sends all it has, and goes on.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from formats.errors import FormatError
from proxy.errors import ExitCode, PeerError, ProxyError, RefusedError, exit_code_of
from proxy.net.dialling import dial
from proxy.net.pumps import together
from proxy.recording.destination import Alone, Onward
from proxy.recording.reading_along import Follower
from proxy.recording.record_report import RecordReport

if TYPE_CHECKING:
    from formats.frame.event import Raw
    from formats.stream.events import Command
    from proxy.net.address import Address
    from proxy.net.connection import Connection
    from proxy.net.tls.roles import ClientTls, ServerTls
    from proxy.recording.recording_file import RecordingFile

DEFAULT_WAIT: Final = 1.0
"""Seconds of silence after which a vmdesc that seems to be missing is taken not to come."""

_BUFFER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """How to record.

    Attributes:
        destination: Where the stream goes on to; None to be the destination.
        allow_no_return_path: Whether, without a destination, a source without a return path may come.
        wait: Seconds of silence after which, without a destination, a vmdesc is taken not to come.
        source_tls: What the source must speak; None for plain text.
        destination_tls: What is spoken to the destination; None for plain text.
    """

    destination: "Address | None" = None
    allow_no_return_path: bool = False
    wait: float = DEFAULT_WAIT
    source_tls: "ServerTls | None" = None
    destination_tls: "ClientTls | None" = None


class Recorder:
    """Records one migration into a file."""

    def __init__(self, config: RecordConfig, file: "RecordingFile") -> None:
        self._config = config
        self._file = file
        self._follower = Follower()
        self._far: Onward | Alone | None = None
        self._error: ProxyError | FormatError = ProxyError("stopped")
        self._write_error: OSError | None = None
        self._buffer = memoryview(bytearray(_BUFFER))

    @property
    def length(self) -> int:
        """How many bytes the source has sent so far."""
        return self._follower.length

    async def run(self, source: "Connection", opening: bytes) -> None:
        """Record the migration whose source has sent `opening`; `report` says how it went. Only cancellation is raised.

        However it ends, the connections are closed: cleanly when their peers ended cleanly, with a reset otherwise.
        """
        destination: Connection | None = None
        clean = False

        try:
            start, commands = await self._follower.begin(opening, partial(self._receive, source))
            if self._config.destination is not None:
                # Not before: a QEMU that waits takes one connection, and exits when that brings something else.
                destination = await dial(self._config.destination, tls=self._config.destination_tls)
                self._far = Onward(source, destination)
            else:
                self._far = Alone(
                    source,
                    self._follower,
                    allow_no_return_path=self._config.allow_no_return_path,
                    wait=self._config.wait,
                )
            await together(self._forward(source, self._far, start, commands), self._far.talk())
            clean = True
            self._error = PeerError("source", "ended the stream there")
        except (ProxyError, FormatError) as error:
            self._error = error
            clean = isinstance(self._far, Alone) and self._far.over
        finally:
            for connection in (source, destination):
                if connection is not None and clean:
                    connection.close()
                elif connection is not None:
                    connection.reset()

    async def _receive(self, source: "Connection") -> memoryview:
        return self._buffer[: await source.receive(self._buffer)]

    async def _forward(
        self, source: "Connection", far: Onward | Alone, start: bytes, commands: "list[Command]"
    ) -> None:
        await self._write(start)
        await far.take(start, commands)
        while True:
            data: memoryview | None = None
            with trio.move_on_after(far.patience):
                data = await self._receive(source)
            if data is None:
                if not await far.silence():
                    return
                continue
            commands = self._follower.follow(data)
            if self._follower.cut:
                raise PeerError("source", "ended the stream there")
            if not data:
                await far.source_ended()
                return
            await self._write(data)
            await far.take(data, commands)

    async def _write(self, data: "Raw") -> None:
        """Write in a thread, so that a slow disk does not hold up the return path.

        What was received is written, whatever breaks meanwhile. Between two QEMUs a disk that is full ends the
        recording, and not the migration.
        """
        if self._write_error is not None:
            return
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._file.write, data)
        except OSError as error:
            self._write_error = error
            if self._config.destination is None:
                raise ProxyError(_unwritten(error)) from error

    # --- what came of it

    def report(self) -> RecordReport:
        """Close the file, name it, and tell what came of the recording. To be called once."""
        follower, far = self._follower, self._far
        report = RecordReport(
            bytes=follower.length,
            sections=follower.sections,
            return_path=follower.return_path,
            not_understood_from=follower.not_understood_from,
        )
        if isinstance(far, Onward) and (follower.return_path or far.listener.heard):
            report.confirmed = far.listener.shut == 0
        if far is None or isinstance(self._error, RefusedError):
            self._file.discard()
            report.reason = str(self._error) if follower.length else "no migration came"
            report.exit_code = exit_code_of(self._error)
        elif self._write_error is None and self._whole(report):
            self._keep(report)
        else:
            self._file.break_off()
            report.file = self._file.partial
            self._explain_cut(report)
        return report

    def _whole(self, report: RecordReport) -> bool:
        """The parser says where the end is; where it cannot, a destination that took the guest does."""
        return self._follower.complete or (report.confirmed is True and not self._follower.cut)

    def _keep(self, report: RecordReport) -> None:
        try:
            self._file.keep()
        except OSError as error:
            report.file, report.reason = self._file.partial, _unwritten(error)
        else:
            report.file, report.complete, report.exit_code = self._file.name, True, ExitCode.OK
        report.note = self._note(report)
        if report.confirmed is False:
            assert isinstance(self._far, Onward)
            how = f"it {self._far.listener.ending}; its log says why" if self._far.ended else str(self._error)
            report.exit_code, report.reason = ExitCode.FAILED, f"the destination did not take the guest: {how}"

    def _note(self, report: RecordReport) -> str:
        """Say which host has the guest, and what could not be read."""
        if report.confirmed is not None:
            note = "the destination has the guest" if report.confirmed else "the source keeps its guest"
        elif isinstance(self._far, Onward):
            note = "there was no return path, so nobody said whether the destination has the guest"
        elif report.return_path:
            note = "the source was told to keep its guest"
        else:
            note = "there was no return path, so the source has stopped its guest; 'cont' in its monitor lets it go on"
        if self._follower.problem is not None:
            note += f"; not understood from there on: {self._follower.problem.without_advice}"
        return note

    def _explain_cut(self, report: RecordReport) -> None:
        problem = self._follower.problem
        if self._write_error is not None:
            report.reason = _unwritten(self._write_error)
            report.note = None if report.confirmed is None else self._note(report)
        elif problem is None or self._follower.cut:
            report.reason, report.exit_code = f"cut at {self._cut_at()}: {self._why()}", ExitCode.MALFORMED
        else:
            report.reason = (
                f"{report.bytes} bytes recorded, not known to be all: not understood from there on: "
                f"{problem.without_advice}; {self._why()}"
            )
            report.exit_code = exit_code_of(problem)

    def _cut_at(self) -> str:
        if self._follower.problem is None:
            self._follower.follow(b"")  # the parser knows what it was waiting for
        problem = self._follower.problem
        where = f"offset {self._follower.length:#x}"
        return where if problem is None or problem.section is None else f"{where}, section {problem.section}"

    def _why(self) -> str:
        if isinstance(self._far, Onward) and self._far.ended and self._far.listener.shut != 0:
            return f"the destination {self._far.listener.ending}; its log says why"
        return str(self._error)


def _unwritten(error: OSError) -> str:
    return f"cannot be written on: {error.strerror or error}"
