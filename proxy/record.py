"""Recording: one migration is taken, and what its source sends is kept, byte for byte, understood or not.

With a destination the bytes go on to it, and its words go back, untouched. Without one the recorder is the destination,
one that in the end does not take the guest: the source sends all it has, and goes on.
"""

import gzip
import json
import lzma
import os
import signal
import sys
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final

import trio

from formats.errors import FormatError, TruncatedStreamError
from formats.events import NEED_DATA, Command, DeviceState, Raw, SectionBegin
from formats.records import CommandType
from formats.return_path import ReturnPathListener, pong, shut
from formats.stream import StreamParser
from proxy.binding import bind
from proxy.dialling import dial
from proxy.errors import ConfigError, ExitCode, PeerError, ProxyError, RefusedError, exit_code_of
from proxy.listening import first_to_speak, listen_on
from proxy.pumps import together
from proxy.stdio import STDIO
from proxy.stop_signals import STOP_SIGNALS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from proxy.address import Address
    from proxy.connection import Connection

SCHEMA_VERSION: Final = 1
PARTIAL: Final = ".partial"

DEFAULT_WAIT: Final = 1.0
"""Seconds of silence after which a vmdesc that seems to be missing is taken not to come."""

_MOST_WAITS: Final = 10
_GOODBYE: Final = 10.0
"""Seconds that a source may take to end the connection once it was told to keep its guest."""

_DID_NOT_TAKE_IT: Final = 1
"""The value of the recorder's SHUT; any but 0 has the source keep its guest."""

_BUFFER: Final = 1 << 20
RETURN_BUFFER: Final = 64 << 10
_PROGRESS_EVERY: Final = 10.0

_MARKS: Final = 4096
"""Changes of section that are remembered; nobody asks for one that is more than a buffer back."""

NO_RETURN_PATH: Final = (
    "the source opened no return path, so it cannot be told to keep its guest, and would give it up to a file; turn "
    "the migration capability return-path on (QMP: migrate-set-capabilities), or pass --allow-no-return-path"
)


# --- reading along


class Follower:
    """Reads along with a stream that passes whatever it holds, as far as it can be understood.

    Attributes:
        length: Bytes of the stream so far.
        sections: How many sections, and parts of iterable ones, were found.
        begun: Whether the first section was reached; before it, the source says what it will do.
        problem: Why the stream could not be read on; what follows is not understood.
    """

    def __init__(self) -> None:
        self.length = 0
        self.sections = 0
        self.begun = False
        self.problem: FormatError | None = None
        self._parser = StreamParser()
        self._marks: deque[tuple[int, str]] = deque([(0, "the header")], maxlen=_MARKS)

    @property
    def complete(self) -> bool:
        """Whether the stream may end here, and was understood; the memory of a postcopy migration is not."""
        return self.problem is None and self._parser.complete and not self._parser.postcopy

    @property
    def postcopy_advised(self) -> bool:
        """Whether the source has announced that it may go over to postcopy."""
        return self._parser.postcopy_advised

    @property
    def cut(self) -> bool:
        """Whether the stream ended, and too early."""
        return isinstance(self.problem, TruncatedStreamError)

    @property
    def not_understood_from(self) -> int | None:
        """From which offset on the stream was not understood; None while it is."""
        return None if self.problem is None or self.cut else self.problem.offset

    @property
    def return_path(self) -> bool:
        """Whether the source opened a return path."""
        return self._parser.return_path

    @property
    def awaiting_vmdesc(self) -> bool:
        """Whether only the vmdesc seems to be missing; see `StreamParser.awaiting_vmdesc`."""
        return self.problem is None and self._parser.awaiting_vmdesc

    async def begin(self, opening: bytes, more: "Callable[[], Awaitable[memoryview]]") -> tuple[bytes, list[Command]]:
        """Read until the stream has shown that it is one.

        Args:
            opening: What came of it before.
            more: Gets what comes next; nothing at the end.

        Returns:
            All that was read, and the commands in it.

        Raises:
            FormatError: It begins as no migration stream does.
        """
        start, commands = bytearray(opening), self.follow(opening) if opening else []
        while not self._parser.offset:
            if self.problem is not None:
                raise self.problem
            piece = await more()
            start += piece
            commands += self.follow(piece)
        return bytes(start), commands

    def follow(self, data: Raw) -> list[Command]:
        """Take the next bytes, or none at the end; return the commands in them."""
        self.length += len(data)
        if self.problem is not None:
            return []
        self._parser.feed(data)
        return self._read()

    def vmdesc_overdue(self, *, last_word: bool) -> None:
        """Say that the vmdesc does not come; see `StreamParser.vmdesc_overdue`."""
        if self.problem is None:
            self._parser.vmdesc_overdue(last_word=last_word)
            self._read()

    def section_at(self, offset: int) -> str:
        """Return what stands at an offset, for people."""
        if offset >= self._parser.offset and self.problem is not None:
            return "what was not understood"
        if offset >= self._parser.offset and self.begun:
            return "the device state"
        return next((label for start, label in reversed(self._marks) if start <= offset), self._marks[0][1])

    def _read(self) -> list[Command]:
        commands: list[Command] = []
        try:
            while (event := self._parser.next_event()) is not NEED_DATA:
                match event:
                    case Command():
                        commands.append(event)
                    case SectionBegin():
                        self._mark(event.offset, f"section {event.name!r} instance {event.instance_id}")
                    case DeviceState():
                        for section in event.sections:
                            self._mark(event.offset + section.start, f"section {section.label}")
                    case _:
                        pass
        except FormatError as error:
            self.problem = error
            self._parser.unread()  # what it holds is of no use any more
        return commands

    def _mark(self, offset: int, label: str) -> None:
        self.begun = True
        self.sections += 1
        if self._marks[-1][1] != label:
            self._marks.append((offset, label))


# --- the file


class RecordingFile:
    """A file that is called NAME.partial until it is complete; packed, where NAME ends in .xz or .gz.

    Standard output, as `-`, and what is no regular file are written as they are.

    Attributes:
        name: What it is called when it is complete.
        partial: What it is called before.
    """

    def __init__(self, name: str) -> None:
        """Open the file.

        Raises:
            ConfigError: It cannot be created, or not packed as its name says.
        """
        if name.endswith((".zst", ".bz2", ".lz4")):
            raise ConfigError(f"{name}: recordings are packed as .xz or .gz; with any other name they are not")
        self.name = self.partial = name
        self._path = os.path.realpath(name)
        self._raw: IO[bytes] | None = None
        self._file: Any = sys.stdout.buffer
        if name == STDIO:
            return
        if os.path.isfile(self._path) or not os.path.exists(self._path):
            self.partial += PARTIAL
        try:
            self._raw = open(self._path + self._suffix, "wb")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"{self.partial}: {error.strerror}") from error
        self._file = _packed(name, self._raw)

    @property
    def _suffix(self) -> str:
        return self.partial[len(self.name) :]

    def write(self, data: Raw) -> None:
        """Write on; raises OSError."""
        self._file.write(data)

    def keep(self) -> None:
        """Close it, and give it its name; raises OSError."""
        self._close()
        if self._suffix:
            os.replace(self._path + self._suffix, self._path)

    def break_off(self) -> None:
        """Close it, and leave it under the name that says that it is not complete."""
        with suppress(OSError):
            self._close()

    def discard(self) -> None:
        """Close it, and remove it."""
        self.break_off()
        if self._suffix:
            with suppress(OSError):
                os.unlink(self._path + self._suffix)

    def _close(self) -> None:
        if self._raw is None:
            self._file.flush()
            return
        with self._raw:
            if self._file is not self._raw:
                self._file.close()  # which writes what the packer still holds
            self._raw.flush()
            if self._suffix:
                # A name that says that all is there must not outlive a power cut that the bytes did not.
                os.fsync(self._raw.fileno())


def _packed(name: str, raw: IO[bytes]) -> Any:  # noqa: ANN401
    """Pack, but lightly: while a source waits for it, its guest goes on dirtying memory that it then sends again."""
    if name.endswith(".xz"):
        return lzma.LZMAFile(raw, "wb", preset=0)
    if name.endswith(".gz"):
        return gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1)
    return raw


# --- where the stream goes


class _Onward:
    """A destination behind the recorder: everything is passed on, both ways."""

    patience: Final = float("inf")

    def __init__(self, source: "Connection", destination: "Connection") -> None:
        self._source = source
        self._destination = destination
        self.listener = ReturnPathListener()
        self.ended = False

    async def take(self, data: Raw, _commands: list[Command]) -> None:
        await self._destination.send(data)

    async def silence(self) -> bool:
        return True

    async def source_ended(self) -> None:
        await self._destination.finish()

    async def talk(self) -> None:
        buffer = memoryview(bytearray(RETURN_BUFFER))
        while length := await self._destination.receive(buffer):
            await self._source.send(buffer[:length])
            self.listener.listen(buffer[:length])
        self.ended = True
        await self._source.finish()


class _Alone:
    """No destination behind the recorder: it answers as one that in the end does not take the guest.

    Attributes:
        over: Whether the stream was complete, and the source was told to keep its guest.
    """

    def __init__(self, source: "Connection", follower: Follower, config: "RecordConfig") -> None:
        self._source = source
        self._follower = follower
        self._config = config
        self._silences = 0
        self.over = False

    @property
    def patience(self) -> float:
        """Seconds that the source may say nothing before `silence` is called."""
        if self.over:
            return _GOODBYE
        unsure = self._follower.awaiting_vmdesc or self._follower.problem is not None
        return self._config.wait if unsure else float("inf")

    async def take(self, _data: Raw, commands: list[Command]) -> None:
        """Take what the source sent, and answer it."""
        self._silences = 0
        self._check()
        for command in commands:
            if command.command is CommandType.PING and self._follower.return_path:
                await self._say(pong(command.payload))
        await self._let_go()

    def _check(self) -> None:
        """Refuse what could lose the guest; what decides that comes before the first section."""
        follower = self._follower
        if follower.postcopy_advised:
            raise RefusedError(
                "the source may go over to postcopy, and would give up its guest to a file; it is recorded only with "
                "--connect, or with the capability postcopy-ram off"
            )
        if follower.problem is not None and not follower.begun:
            # It may announce what no source can take its guest back from.
            raise RefusedError(
                f"{_where(follower.problem)}: what is not understood up to its first section is recorded only with "
                "--connect, because without it the source might lose its guest"
            )
        if follower.begun and not follower.return_path and not self._config.allow_no_return_path:
            raise RefusedError(NO_RETURN_PATH)

    async def silence(self) -> bool:
        """Hear that the source says nothing; return whether to wait on."""
        if self.over:
            return False
        self._silences += 1
        last = self._silences == _MOST_WAITS
        self._follower.vmdesc_overdue(last_word=last)
        await self._let_go()
        if last and not self.over:
            raise PeerError("source", "sends no more")
        return True

    async def source_ended(self) -> None:
        """Hear that the source sends no more."""
        await self._let_go()

    async def talk(self) -> None:
        """Say nothing that is no answer."""

    async def _let_go(self) -> None:
        """Once the stream is complete, have the source keep its guest; should it send more, that is heard, too."""
        if self.over or not self._follower.complete:
            return
        self.over = True
        if self._follower.return_path:
            await self._say(shut(_DID_NOT_TAKE_IT))
            await self._source.finish()

    async def _say(self, message: bytes) -> None:
        await self._source.send(message)


# --- one migration


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """How to record.

    Attributes:
        destination: Where the stream goes on to; None to be the destination.
        allow_no_return_path: Whether, without a destination, a source without a return path may come.
        wait: Seconds of silence after which, without a destination, a vmdesc is taken not to come.
    """

    destination: "Address | None" = None
    allow_no_return_path: bool = False
    wait: float = DEFAULT_WAIT


@dataclass(slots=True)
class RecordReport:
    """What came of one recording.

    Attributes:
        file: What its file is called; None when there is none.
        bytes: Bytes that the source sent.
        sections: Sections, and parts of iterable ones, that were found in them.
        complete: Whether the file holds the whole stream.
        return_path: Whether the source opened a return path.
        confirmed: Whether the destination said that it has the guest; None when nobody could say so.
        not_understood_from: From which offset on the stream was not understood; None when all of it was.
        reason: What went wrong; None when nothing did.
        note: What is to be known besides, for people.
        exit_code: What the command ends with.
    """

    file: str | None = None
    bytes: int = 0
    sections: int = 0
    complete: bool = False
    return_path: bool = False
    confirmed: bool | None = None
    not_understood_from: int | None = None
    reason: str | None = None
    note: str | None = None
    exit_code: ExitCode = ExitCode.FAILED

    def as_json(self) -> str:
        """Return the report as one line of JSON."""
        values = asdict(self)
        del values["note"], values["exit_code"]
        return json.dumps({"schema_version": SCHEMA_VERSION, **values})

    def summary(self) -> str:
        """Return the report in one line, for people."""
        recorded = f"{self.bytes} bytes recorded, {self.sections} sections" if self.complete else None
        line = "; ".join(part for part in (recorded, self.reason, self.note) if part is not None)
        return line if self.file is None else f"{self.file}: {line}"


class Recorder:
    """Records one migration into a file."""

    def __init__(self, config: RecordConfig, file: RecordingFile) -> None:
        self._config = config
        self._file = file
        self._follower = Follower()
        self._far: _Onward | _Alone | None = None
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
                destination = await dial(self._config.destination)
                self._far = _Onward(source, destination)
            else:
                self._far = _Alone(source, self._follower, self._config)
            await together(self._forward(source, self._far, start, commands), self._far.talk())
            clean = True
            self._error = PeerError("source", "ended the stream there")
        except (ProxyError, FormatError) as error:
            self._error = error
            clean = isinstance(self._far, _Alone) and self._far.over
        finally:
            for connection in (source, destination):
                if connection is not None and clean:
                    connection.close()
                elif connection is not None:
                    connection.reset()

    async def _receive(self, source: "Connection") -> memoryview:
        return self._buffer[: await source.receive(self._buffer)]

    async def _forward(
        self, source: "Connection", far: _Onward | _Alone, start: bytes, commands: list[Command]
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

    async def _write(self, data: Raw) -> None:
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
        if isinstance(far, _Onward) and (follower.return_path or far.listener.heard):
            report.confirmed = far.listener.shut == 0
        if far is None or isinstance(self._error, RefusedError):
            self._file.discard()
            report.reason = str(self._error) if follower.length else "no migration came"
            report.exit_code = exit_code(self._error)
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
            assert isinstance(self._far, _Onward)
            how = f"it {ended(self._far.listener.shut)}; its log says why" if self._far.ended else str(self._error)
            report.exit_code, report.reason = ExitCode.FAILED, f"the destination did not take the guest: {how}"

    def _note(self, report: RecordReport) -> str:
        """Say who has the guest, and what was not understood."""
        if report.confirmed is not None:
            note = "the destination has the guest" if report.confirmed else "the source keeps its guest"
        elif isinstance(self._far, _Onward):
            note = "there was no return path, so nobody said whether the destination has the guest"
        elif report.return_path:
            note = "the source was told to keep its guest"
        else:
            note = "there was no return path, so the source has stopped its guest; 'cont' in its monitor lets it go on"
        if self._follower.problem is not None:
            note += f"; not understood from there on: {_where(self._follower.problem)}"
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
                f"{report.bytes} bytes recorded, not known to be all: not understood from there on: {_where(problem)}; "
                f"{self._why()}"
            )
            report.exit_code = exit_code(problem)

    def _cut_at(self) -> str:
        if self._follower.problem is None:
            self._follower.follow(b"")  # the parser knows what it was waiting for
        problem = self._follower.problem
        where = f"offset {self._follower.length:#x}"
        return where if problem is None or problem.section is None else f"{where}, section {problem.section}"

    def _why(self) -> str:
        if isinstance(self._far, _Onward) and self._far.ended and self._far.listener.shut != 0:
            return f"the destination {ended(self._far.listener.shut)}; its log says why"
        return str(self._error)


def ended(shut_value: int | None) -> str:
    """Say how a destination ended that did not take the guest."""
    return "ended saying nothing" if shut_value is None else f"ended with error {shut_value}"


def exit_code(error: ProxyError | FormatError) -> ExitCode:
    """Return the exit code for an error of either kind."""
    return exit_code_of(error) if isinstance(error, FormatError) else error.exit_code


def _where(problem: FormatError) -> str:
    """Return a problem without its advice, which is for those who cannot pass the stream on."""
    section = "" if problem.section is None else f", section {problem.section}"
    return f"offset {problem.offset:#x}{section}: {problem.message}"


def _unwritten(error: OSError) -> str:
    return f"cannot be written on: {error.strerror or error}"


# --- the listener


async def record(
    address: "Address", config: RecordConfig, file: RecordingFile, say: "Callable[[str], None]"
) -> RecordReport:
    """Listen, record the first migration that comes, and tell what came of it.

    The first SIGTERM or SIGINT ends the listening; a recording that has begun goes on to its end, unless a second one
    breaks it off.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    recorder = Recorder(config, file)
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        try:
            bounds = bind(address)
        except ConfigError:
            file.discard()
            raise
        onward = "with no destination" if config.destination is None else f"for the destination at {config.destination}"
        for one in bounds:
            say(f"listening on {one.name}, {onward}; recording into {file.name}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, signals, recorder, nursery.cancel_scope, say)
            nursery.start_soon(_tell_progress, recorder, say)
            source, opening = await first_to_speak([listen_on(one) for one in bounds], say)
            say(f"recording what {source.name} sends")
            await recorder.run(source, opening)
            nursery.cancel_scope.cancel()
    return recorder.report()


async def _obey_signals(
    signals: "AsyncIterator[int]", recorder: Recorder, everything: trio.CancelScope, say: "Callable[[str], None]"
) -> None:
    told = False
    async for number in signals:
        if told or not recorder.length:
            everything.cancel()
            return
        told = True
        say(f"{signal.Signals(number).name}: the recording goes on to its end; send it again to break it off")


async def _tell_progress(recorder: Recorder, say: "Callable[[str], None]") -> None:
    while True:
        before = recorder.length
        await trio.sleep(_PROGRESS_EVERY)
        if recorder.length:
            rate = (recorder.length - before) / _PROGRESS_EVERY
            say(f"{recorder.length >> 20} MiB recorded, {rate / (1 << 20):.0f} MiB/s")
