"""The section grammar: a push parser of the main channel of a migration.

Feed it bytes, take events until `NEED_DATA`, feed more; when the source has ended, feed `b""` and take the rest.
Device sections are held until all of them are there, because only then can they be located (`state_reader`).
In postcopy they come as a package, and what follows it is memory, which is not looked at any more.
Source: QEMU `migration/savevm.c` (`qemu_loadvm_state_main`), `migration/ram.c`.
"""

from typing import Final

from formats.errors import FormatError, MalformedStreamError
from formats.frame.event import NEED_DATA, NeedData, Raw
from formats.frame.records import FILE_VERSION, CommandType, RecordType
from formats.iterable.ram import RamReader
from formats.iterable.sections import IterableSections
from formats.limits import DEFAULT_DEVICE_STATE_LIMIT
from formats.stream.broken import too_long, truncated, unexpected
from formats.stream.commands import read_command
from formats.stream.configuration import read_configuration, true_page_bits
from formats.stream.ending import Ending
from formats.stream.events import AnyEvent, Command, FileHeader, IterableData, MappedPages, PostcopyData, TrailingBytes
from formats.stream.file_header import read_file_header
from formats.stream.grammar import State, accepted
from formats.stream.intake import Intake
from formats.stream.package import SECTION as PACKAGE
from formats.stream.postcopy import Postcopy
from formats.stream.section_reader import SectionReader
from formats.stream.state_reader import LABEL as DEVICE_STATE
from formats.stream.state_reader import DeviceStateReader

_HELD: Final = {State.DEVICE_STATE: DEVICE_STATE, State.PACKAGE: PACKAGE}


class StreamParser:
    """Parses one migration stream; see the module.

    Attributes:
        machine: The machine type, once the configuration was read; None before, or when the stream has none.
        return_path: Whether the source opened a return path.
        state: What is expected next.
    """

    def __init__(
        self,
        *,
        device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT,
        take_mapped_ram: bool = False,
        take_trailing: bool = False,
    ) -> None:
        """Make a parser.

        Args:
            device_state_limit: Bytes of device state held at most.
            take_mapped_ram: Whether the stream is in a file, where mapped-ram has its place.
            take_trailing: Whether more may follow the end, as in a file; where that is, is told when no more is held.
        """
        self._take_mapped_ram = take_mapped_ram
        self.machine: str | None = None
        self.return_path = False
        self.state = State.FILE_HEADER
        self._error: FormatError | None = None
        self._abandoned = False
        self._in = Intake()
        self._iterables = IterableSections()
        self._sections = SectionReader(self._in, self._iterables)
        self._take_trailing = take_trailing
        self._states = DeviceStateReader(self._in, device_state_limit, take_trailing=take_trailing)
        self._ending = Ending(self._in, take_trailing=take_trailing)
        self._postcopy = Postcopy(self._in, device_state_limit)

    @property
    def offset(self) -> int:
        """How many bytes of the stream are behind: the sum of the lengths of all events so far."""
        return self._in.offset

    @property
    def complete(self) -> bool:
        """Whether the stream may end here."""
        return self.state in (State.DONE, State.AFTER_EOF, State.POSTCOPY)

    @property
    def postcopy_advised(self) -> bool:
        """Whether the source may go over to postcopy."""
        return self._postcopy.advised

    @property
    def switching_to_postcopy(self) -> bool:
        """Whether the source is about to: its guest has stopped, and the package has not been passed on."""
        return self._postcopy.switching

    @property
    def postcopy(self) -> bool:
        """Whether the package with the device state is behind; the destination then runs the guest."""
        return self.state is State.POSTCOPY and not self._postcopy.unpacked

    @property
    def holds(self) -> bool:
        """Whether what comes is held until all of it is there: device state, or a postcopy package."""
        return self.state in (State.DEVICE_STATE, State.PACKAGE)

    @property
    def ram(self) -> RamReader | None:
        """The reader of the `ram` sections with its counts; None before the first."""
        return self._iterables.ram

    @property
    def awaiting_vmdesc(self) -> bool:
        """Whether what is held could be all of the device state, were it not for the vmdesc that usually follows.

        Sources with `suppress-vmdesc` send none, and then wait for the destination. Who has a clock calls
        `vmdesc_overdue` when nothing came for a while.
        """
        return self.state is State.DEVICE_STATE and self._states.ends_like_the_end

    @property
    def amid_part(self) -> bool:
        """Whether the bytes fed so far end in an iterable section, and it is not the last one: its guest runs."""
        return self.state is State.ITERABLE_BODY and self._iterables.amid_part

    @property
    def amid_small_records(self) -> bool:
        """Whether that is so, and they end between its records: among zero pages. Full pages end within one."""
        return self.state is State.ITERABLE_BODY and self._iterables.amid_small_records

    def feed(self, data: Raw) -> None:
        """Take the next bytes of the stream; `b""` says that the source ended it. Take all events before the next."""
        self._in.feed(data)

    @property
    def skippable(self) -> int:
        """How many of the next bytes, once `NEED_DATA` was returned, need not be fed.

        They are mapped pages or, where there are more of them than any file has, what follows the end of the stream.
        """
        if self.state is State.DONE:
            return self._ending.skippable
        return 0 if self.state is not State.ITERABLE_BODY or len(self._in.data) else self._iterables.skippable

    def skip(self, length: int, *, zeroes: bool = False) -> MappedPages | TrailingBytes:
        """Step over the next `length` bytes, at most `skippable`: what is fed next comes after them.

        Args:
            length: How many.
            zeroes: Whether they are known to be zero; said of what follows the end of the stream.
        """
        assert 0 < length <= self.skippable
        if self.state is State.DONE:
            return self._ending.skip(length, zeroes=zeroes)
        self._iterables.skip(length)
        offset = self._in.offset
        self._in.offset += length
        return MappedPages(offset, b"", length=length)

    def vmdesc_overdue(self, *, last_word: bool = False) -> None:
        """Say that the vmdesc that is awaited does not come; the device state may then be located without it.

        Args:
            last_word: Whether nothing else comes either, so that what cannot be located now never will be.
        """
        self._states.vmdesc_overdue(last_word=last_word)

    def without_vmdesc(self) -> None:
        """Say that nothing is to wait for the vmdesc that is awaited, unless the footers leave a doubt.

        When the bytes fed so far are all of the device state, the one way to cut them is the true one. When they are
        not, and only seem to end, what is released is no whole state for any destination, and whatever follows but a
        vmdesc that describes the same sections is an error: such a migration ends while the source has its guest.
        """
        self._states.without_vmdesc()

    def next_event(self) -> AnyEvent | NeedData:
        """Return the next event.

        Returns:
            An event, or `NEED_DATA` when the bytes fed so far hold no further one.

        Raises:
            MalformedStreamError: The bytes are no such stream, or the source ended it too early.
            RefusedStreamError: The stream cannot be read on safely.
            Once raised, the same error is raised again.
        """
        if self._error is not None:
            raise self._error
        try:
            event = self._next_event()
        except FormatError as error:
            self._error, self.state = error, State.ERROR
            raise
        if event is NEED_DATA:
            self._in.keep()
        return event

    def recover(self) -> None:
        """Say that this is no stream from its start, but what a paused postcopy migration goes on with."""
        self.return_path = self._postcopy.advised = self._postcopy.switching = True
        self.state = State.POSTCOPY

    def abandon_package(self) -> None:
        """Go on after the package, whatever was wrong with it, to see where the source has sent all it wants to.

        Take the events as before; the stream is complete there.
        """
        self._error = None
        self._abandoned = True
        self._postcopy.abandon_package()
        self._in.keep()
        self.state = State.RECORD

    def unread(self) -> bytes:
        """Give up: return the bytes that were fed and are in no event."""
        rest = bytes(self._states.release()) + bytes(self._in.data)
        self._in.data = memoryview(b"")
        return rest

    # --- one state at a time

    def _next_event(self) -> AnyEvent | NeedData:
        if self._postcopy.unpacked:
            return self._postcopy.unpacked.popleft()
        if self._abandoned and (skipped := self._postcopy.skipped()) is not None:
            return skipped
        match self.state:
            case State.FILE_HEADER:
                event = self._file_header()
            case State.ITERABLE_BODY:
                event = self._iterable_body()
            case State.DEVICE_STATE:
                event = self._device_state()
            case State.PACKAGE:
                event = self._then(self._postcopy.open_package(self._states.early), State.POSTCOPY)
            case State.POSTCOPY:
                event = PostcopyData(*self._in.take(len(self._in.data))) if len(self._in.data) else NEED_DATA
            case State.DONE:
                event = self._ending.next_event()
            case _:
                event = self._record()
        if event is NEED_DATA and self._in.ended and not (self.complete and not len(self._in.data)):
            raise self._ended_early()
        return event

    def _file_header(self) -> AnyEvent | NeedData:
        size = read_file_header(self._in.data, ended=self._in.ended)
        if size is None:
            return NEED_DATA
        self.state = State.FIRST_RECORD
        return FileHeader(*self._in.take(size), version=FILE_VERSION)

    def _record(self) -> AnyEvent | NeedData:
        if not len(self._in.data):
            return NEED_DATA
        record_type = accepted(self._in.data[0], self.state)
        match record_type:
            case None:
                raise unexpected(self._in.data[0], self.state, self._in.offset, self._section_label())
            case RecordType.CONFIGURATION:
                return self._configuration()
            case RecordType.COMMAND:
                return self._command()
            case RecordType.SECTION_START | RecordType.SECTION_PART | RecordType.SECTION_END:
                return self._then(self._sections.begin(record_type), State.ITERABLE_BODY)
            case RecordType.SECTION_FOOTER:
                return self._then(self._sections.footer(), State.RECORD)
            case RecordType.VMDESCRIPTION:
                return self._then(self._states.late_vmdesc(), State.DONE)
            case RecordType.EOF if self._abandoned:
                self.state = State.DONE
                return PostcopyData(*self._in.take(1))
            case _:
                self.state = State.DEVICE_STATE
                return self._device_state()

    def _then(self, event: AnyEvent | None, state: State) -> AnyEvent | NeedData:
        """Go over to a state with an event that was all there."""
        if event is None:
            return NEED_DATA
        self.state = state
        return event

    def _configuration(self) -> AnyEvent | NeedData:
        found = read_configuration(self._in.data, self._in.offset, take_mapped_ram=self._take_mapped_ram)
        if found is None:
            return NEED_DATA
        self.machine = found.machine
        self._iterables.page_bits = true_page_bits(found)
        self._iterables.capabilities = found.capabilities
        self.state = State.RECORD
        self._in.take(len(found.raw))
        return found

    def _command(self) -> AnyEvent | NeedData:
        found = read_command(self._in.data, self._in.offset)
        if found is None:
            return NEED_DATA
        command, payload, size = found
        match command:
            case CommandType.OPEN_RETURN_PATH:
                self.return_path = True
            case CommandType.POSTCOPY_ADVISE:
                page_sizes = self._postcopy.advise(payload)
                if page_sizes is not None:
                    self._iterables.page_sizes = page_sizes
            case CommandType.POSTCOPY_RAM_DISCARD | CommandType.PACKAGED:
                self._postcopy.begin(command, payload)
        if command is CommandType.PACKAGED:
            # It is an event when the package has come, and can be passed on with it.
            self.state = State.PACKAGE
            return self._then(self._postcopy.open_package(self._states.early), State.POSTCOPY)
        self.state = State.RECORD
        return Command(*self._in.take(size), command=command, payload=payload)

    # --- iterable sections

    def _iterable_body(self) -> AnyEvent | NeedData:
        if not len(self._in.data):
            return NEED_DATA
        length, ended = self._iterables.read(self._in.data, self._in.offset)
        if ended:
            self.state = State.ITERABLE_FOOTER
            if not length:
                return self._record()
        return IterableData(*self._in.take(length))

    # --- device state

    def _device_state(self) -> AnyEvent | NeedData:
        state = self._states.read(iterables_to_come=self._iterables.to_come)
        if state is None:
            return NEED_DATA
        vmdesc_may_follow = state.vmdesc is None and not self._take_trailing
        self.state = State.RECORD if state.early else State.AFTER_EOF if vmdesc_may_follow else State.DONE
        return state

    # --- the end, and errors

    def _ended_early(self) -> MalformedStreamError:
        end = self._in.offset + self._states.held + len(self._in.data)
        extra = self._states.bytes_past_the_end if self.state is State.DEVICE_STATE else 0
        return too_long(end - extra) if extra else truncated(self.state, end, self._section_label())

    def _section_label(self) -> str | None:
        at_hand = self._iterables.at_hand
        return _HELD.get(self.state, None if at_hand is None else at_hand.label)
