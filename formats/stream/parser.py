"""The section grammar: a push parser of the main channel of a migration.

Feed it bytes, take events until `NEED_DATA`, feed more; when the source has ended, feed `b""` and take the rest.
Device sections are held until all of them are there, because only then can they be located (see
`formats.vmstate.locators`).
In postcopy they come as a package, and what follows it is memory, which is not looked at any more.
Source: QEMU `migration/savevm.c` (`qemu_loadvm_state_main`), `migration/ram.c`.
"""

from collections import deque
from struct import Struct
from typing import Final

from formats.errors import (
    DeviceStateTooLargeError,
    FormatError,
    MalformedStreamError,
    TruncatedStreamError,
    UnlocatableSectionError,
    UnsupportedFeatureError,
)
from formats.frame.event import NEED_DATA, NeedData, Raw
from formats.frame.records import (
    COMMAND,
    FILE_VERSION,
    SECTION_HEADER,
    SECTION_REFERENCE,
    VMDESCRIPTION_HEADER,
    CommandType,
    RecordType,
    read,
)
from formats.iterable.ram import RamReader
from formats.iterable.sections import IterableSection, IterableSections
from formats.limits import DEFAULT_DEVICE_STATE_LIMIT
from formats.stream.configuration import read_configuration, true_page_bits
from formats.stream.events import (
    AnyEvent,
    Command,
    FileHeader,
    IterableData,
    LateVmdesc,
    MappedPages,
    PostcopyData,
    SectionBegin,
    SectionFooter,
)
from formats.stream.file_header import read_file_header
from formats.stream.grammar import ACCEPTS, State
from formats.stream.package import SECTION as PACKAGE
from formats.stream.package import open_package
from formats.stream.refusals import COLO, COLO_CHECKPOINT, REFUSED_COMMANDS
from formats.vmstate.device_state import DeviceState
from formats.vmstate.hold import DeviceStateHold
from formats.vmstate.locators import NO_VMDESC, DeviceSection, EarlySection, locate_by_vmdesc
from formats.vmstate.vmdesc import Vmdesc, parse_vmdesc

_ADVISE: Final = Struct(">QQ")
_LENGTH: Final = Struct(">I")
_PACKAGED_SIZE: Final = 5 + _LENGTH.size


class StreamParser:
    """Parses one migration stream; see the module.

    Attributes:
        machine: The machine type, once the configuration was read; None before, or when the stream has none.
        return_path: Whether the source opened a return path.
        postcopy_advised: Whether the source may go over to postcopy.
        switching_to_postcopy: Whether it is about to: its guest has stopped, and the package has not been passed on.
    """

    def __init__(self, *, device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT, take_mapped_ram: bool = False) -> None:
        """Make a parser.

        Args:
            device_state_limit: Bytes of device state held at most.
            take_mapped_ram: Whether the stream is in a file, where mapped-ram has its place.
        """
        self._take_mapped_ram = take_mapped_ram
        self.machine: str | None = None
        self.return_path = False
        self._state = State.FILE_HEADER
        self._error: FormatError | None = None
        self._data: memoryview = memoryview(b"")
        self._offset = 0
        self._source_ended = False

        self.postcopy_advised = False
        self.switching_to_postcopy = False

        self._iterables = IterableSections()

        self._early: list[EarlySection] = []
        self._hold = DeviceStateHold(device_state_limit)
        self._vmdesc_overdue = False
        self._vmdesc_waived = False
        self._last_word = False
        self._located: DeviceState | None = None
        self._package_length = 0
        self._package_opened = False
        self._abandoned = False
        self._to_skip = 0
        self._unpacked: deque[AnyEvent] = deque()

    @property
    def state(self) -> State:
        """What is expected next."""
        return self._state

    @property
    def offset(self) -> int:
        """How many bytes of the stream are behind: the sum of the lengths of all events so far."""
        return self._offset

    @property
    def complete(self) -> bool:
        """Whether the stream may end here."""
        return self._state in (State.DONE, State.AFTER_EOF, State.POSTCOPY)

    @property
    def postcopy(self) -> bool:
        """Whether the package with the device state is behind; the destination then runs the guest."""
        return self._state is State.POSTCOPY and not self._unpacked

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
        return self._state is State.DEVICE_STATE and self._hold.ends_like_the_end

    @property
    def amid_small_records(self) -> bool:
        """Whether the bytes fed so far end between records of an iterable section, and it is not the last one.

        So it is among zero pages; those that end among full pages end within one.
        """
        return self._state is State.ITERABLE_BODY and self._iterables.amid_small_records

    def feed(self, data: Raw) -> None:
        """Take the next bytes of the stream; `b""` says that the source ended it. Take all events before the next."""
        if not len(data):
            self._source_ended = True
        elif len(self._data):
            self._data = memoryview(bytes(self._data) + data)
        else:
            self._data = memoryview(data)

    @property
    def skippable(self) -> int:
        """How many of the next bytes, once `NEED_DATA` was returned, are mapped pages that need not be fed."""
        return 0 if self._state is not State.ITERABLE_BODY or len(self._data) else self._iterables.skippable

    def skip(self, length: int) -> MappedPages:
        """Step over the next `length` bytes, at most `skippable`: what is fed next comes after them."""
        assert 0 < length <= self.skippable
        self._iterables.skip(length)
        offset = self._offset
        self._offset += length
        return MappedPages(offset, b"", length=length)

    def vmdesc_overdue(self, *, last_word: bool = False) -> None:
        """Say that the vmdesc that is awaited does not come; the device state may then be located without it.

        Args:
            last_word: Whether nothing else comes either, so that what cannot be located now never will be.
        """
        self._vmdesc_overdue = self.awaiting_vmdesc
        self._last_word = last_word

    def without_vmdesc(self) -> None:
        """Say that nothing is to wait for the vmdesc that is awaited, unless the footers leave a doubt.

        When the bytes fed so far are all of the device state, the one way to cut them is the true one. When they are
        not, and only seem to end, what is released is no whole state for any destination, and whatever follows but a
        vmdesc that describes the same sections is an error: such a migration ends while the source has its guest.
        """
        self._vmdesc_waived = self.awaiting_vmdesc

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
            self._error, self._state = error, State.ERROR
            raise
        if event is NEED_DATA:
            # The view may be of a buffer that the caller is about to use again.
            self._data = memoryview(bytes(self._data))
        return event

    def recover(self) -> None:
        """Say that this is no stream from its start, but what a paused postcopy migration goes on with."""
        self.return_path = self.postcopy_advised = self.switching_to_postcopy = True
        self._state = State.POSTCOPY

    def abandon_package(self) -> None:
        """Go on after the package, whatever was wrong with it, to see where the source has sent all it wants to.

        Take the events as before; the stream is complete there.
        """
        self._error = None
        self._abandoned = True
        self._unpacked.clear()
        self._data = memoryview(bytes(self._data))
        if not self._package_opened:
            self._to_skip = _PACKAGED_SIZE + self._package_length
        self._state = State.RECORD

    def unread(self) -> bytes:
        """Give up: return the bytes that were fed and are in no event."""
        rest = bytes(self._hold.release()) + bytes(self._data)
        self._data = memoryview(b"")
        return rest

    # --- one state at a time

    def _next_event(self) -> AnyEvent | NeedData:
        if self._unpacked:
            return self._unpacked.popleft()
        if self._to_skip and len(self._data):
            skipped = min(self._to_skip, len(self._data))
            self._to_skip -= skipped
            return PostcopyData(*self._take(skipped))
        match self._state:
            case State.FILE_HEADER:
                event = self._file_header()
            case State.ITERABLE_BODY:
                event = self._iterable_body()
            case State.DEVICE_STATE:
                event = self._device_state()
            case State.PACKAGE:
                event = self._package()
            case State.POSTCOPY:
                event = PostcopyData(*self._take(len(self._data))) if len(self._data) else NEED_DATA
            case State.DONE:
                event = self._nothing_more()
            case _:
                event = self._record()
        if event is NEED_DATA and self._source_ended and not (self.complete and not len(self._data)):
            raise self._ended_early()
        return event

    def _file_header(self) -> AnyEvent | NeedData:
        size = read_file_header(self._data, ended=self._source_ended)
        if size is None:
            return NEED_DATA
        self._state = State.FIRST_RECORD
        return FileHeader(*self._take(size), version=FILE_VERSION)

    def _record(self) -> AnyEvent | NeedData:
        if not len(self._data):
            return NEED_DATA
        try:
            record_type = RecordType(self._data[0])
        except ValueError:
            record_type = None
        if record_type is None or record_type not in ACCEPTS[self._state]:
            raise self._unexpected(self._data[0])
        match record_type:
            case RecordType.CONFIGURATION:
                return self._configuration()
            case RecordType.COMMAND:
                return self._command()
            case RecordType.SECTION_START:
                return self._section_start()
            case RecordType.SECTION_PART | RecordType.SECTION_END:
                return self._section_part(record_type)
            case RecordType.SECTION_FOOTER:
                return self._section_footer()
            case RecordType.VMDESCRIPTION:
                return self._late_vmdesc()
            case RecordType.EOF if self._abandoned:
                self._state = State.DONE
                return PostcopyData(*self._take(1))
            case _:
                self._state = State.DEVICE_STATE
                return self._device_state()

    def _configuration(self) -> AnyEvent | NeedData:
        found = read_configuration(self._data, self._offset, take_mapped_ram=self._take_mapped_ram)
        if found is None:
            return NEED_DATA
        self.machine = found.machine
        self._iterables.page_bits = true_page_bits(found)
        self._iterables.capabilities = found.capabilities
        self._state = State.RECORD
        self._take(len(found.raw))
        return found

    def _command(self) -> AnyEvent | NeedData:
        found = read(COMMAND, self._data, self._offset)
        if found is None:
            return NEED_DATA
        parsed, size = found
        try:
            command = CommandType(parsed.command)
        except ValueError:
            raise UnsupportedFeatureError(f"command {parsed.command} is not known", offset=self._offset) from None
        if command in REFUSED_COMMANDS:
            raise self._unsupported(*REFUSED_COMMANDS[command])
        match command:
            case CommandType.OPEN_RETURN_PATH:
                self.return_path = True
            case CommandType.POSTCOPY_ADVISE:
                self._advised(parsed.payload)
            case CommandType.POSTCOPY_RAM_DISCARD | CommandType.PACKAGED:
                self._begin_postcopy(command, parsed.payload)
        if command is CommandType.PACKAGED:
            # It is an event when the package has come, and can be passed on with it.
            self._state = State.PACKAGE
            return self._package()
        self._state = State.RECORD
        return Command(*self._take(size), command=command, payload=parsed.payload)

    # --- postcopy

    def _advised(self, payload: bytes) -> None:
        """Note that postcopy may come.

        The payload: be64 sizes of all host pages or-ed, be64 target page size; for dirty bitmaps alone, nothing.
        Source: QEMU `migration/savevm.c` (`qemu_savevm_send_postcopy_advise`).
        """
        if len(payload) not in (0, _ADVISE.size):
            raise MalformedStreamError(f"POSTCOPY_ADVISE of {len(payload)} bytes", offset=self._offset)
        self.postcopy_advised = True
        if payload:
            self._iterables.page_sizes, _ = _ADVISE.unpack(payload)

    def _begin_postcopy(self, command: CommandType, payload: bytes) -> None:
        if not self.postcopy_advised:
            raise MalformedStreamError(f"{command.name} without POSTCOPY_ADVISE", offset=self._offset)
        self.switching_to_postcopy = True
        if command is CommandType.PACKAGED:
            if len(payload) != _LENGTH.size:
                raise MalformedStreamError(f"PACKAGED with {len(payload)} bytes of length", offset=self._offset)
            (self._package_length,) = _LENGTH.unpack(payload)
            if self._package_length > self._hold.limit:
                raise DeviceStateTooLargeError(
                    f"it has {self._package_length} bytes, and may have {self._hold.limit}",
                    offset=self._offset,
                    section=PACKAGE,
                    advice="raise --device-state-limit if the guest's devices are known to have that much",
                )

    def _package(self) -> AnyEvent | NeedData:
        """Open the package once it is all there; its command is the first thing in the data."""
        if len(self._data) < _PACKAGED_SIZE + self._package_length:
            return NEED_DATA
        offset, raw = self._take(_PACKAGED_SIZE)
        announced = Command(offset, raw, command=CommandType.PACKAGED, payload=bytes(raw[-_LENGTH.size :]))
        start, blob = self._take(self._package_length)
        self._package_opened = True
        package = open_package(bytes(blob), self._early, start)
        self._unpacked.extend(package.events(start))
        self._state = State.POSTCOPY
        return announced

    # --- iterable sections

    def _section_start(self) -> AnyEvent | NeedData:
        found = read(SECTION_HEADER, self._data, self._offset)
        if found is None:
            return NEED_DATA
        header, size = found
        section = self._iterables.start(
            header.section_id, header.name, header.instance_id, header.version_id, self._offset
        )
        return self._begin(RecordType.SECTION_START, section, size)

    def _section_part(self, record_type: RecordType) -> AnyEvent | NeedData:
        found = read(SECTION_REFERENCE, self._data, self._offset)
        if found is None:
            return NEED_DATA
        reference, size = found
        section = self._iterables.go_on(
            reference.section_id, self._offset, last_part=record_type is RecordType.SECTION_END
        )
        return self._begin(record_type, section, size)

    def _begin(self, record_type: RecordType, section: IterableSection, size: int) -> SectionBegin:
        self._state = State.ITERABLE_BODY
        return SectionBegin(
            *self._take(size),
            type=record_type,
            section_id=section.section_id,
            name=section.name,
            instance_id=section.instance_id,
            version_id=section.version_id,
        )

    def _iterable_body(self) -> AnyEvent | NeedData:
        if not len(self._data):
            return NEED_DATA
        length, ended = self._iterables.read(self._data, self._offset)
        if ended:
            self._state = State.ITERABLE_FOOTER
            if not length:
                return self._record()
        return IterableData(*self._take(length))

    def _section_footer(self) -> AnyEvent | NeedData:
        found = read(SECTION_REFERENCE, self._data, self._offset)
        if found is None:
            return NEED_DATA
        reference, size = found
        self._iterables.end(reference.section_id, self._offset)
        self._state = State.RECORD
        return SectionFooter(*self._take(size), section_id=reference.section_id)

    # --- device state

    def _device_state(self) -> AnyEvent | NeedData:
        if len(self._data):
            early = self._iterables.to_come
            # RAM may follow early sections in the same chunk, and does not count against what may be held.
            room = self._hold.limit - len(self._hold) if early else len(self._data)
            self._hold.add(self._data[:room], self._offset)
            self._data = self._data[room:]
            sections = self._hold.locate_early(self._offset) if early else None
            if sections is not None:
                return self._early_device_state(sections)
            self._hold.add(self._data, self._offset)
            self._data = memoryview(b"")
            if self._hold.find_vmdesc():
                sections, vmdesc = self._hold.locate_by_vmdesc(self._early, self._offset)
                self._state = State.DONE
                return self._release(sections, vmdesc)
        if self.awaiting_vmdesc and (self._vmdesc_overdue or self._vmdesc_waived or self._source_ended):
            located = self._located_by_footers()
            if located is not None:
                self._state = State.AFTER_EOF
                self._located = self._release(located, None)
                return self._located
            if self._last_word:
                raise UnlocatableSectionError(
                    "the source sends no more, and no footers cut what it sent into sections",
                    offset=self._offset,
                    section=self._section_label(),
                    advice=NO_VMDESC,
                )
        return NEED_DATA

    def _located_by_footers(self) -> list[DeviceSection] | None:
        """Locate the sections without a vmdesc; None when that is not possible, or not yet to be decided."""
        only_if_certain = self._vmdesc_waived and not self._vmdesc_overdue
        self._vmdesc_overdue = self._vmdesc_waived = False
        try:
            return self._hold.locate_by_footers(self._early, self._offset)
        except UnlocatableSectionError:
            if only_if_certain and not self._source_ended:
                return None
            raise

    def _early_device_state(self, sections: list[DeviceSection]) -> DeviceState:
        """Device sections before RAM, as virtio-mem sends: they end where an iterable section starts."""
        self._data = memoryview(self._hold.cut(sections[-1].end) + bytes(self._data))
        self._state = State.RECORD
        state = self._release(sections, None, early=True)
        self._early += [EarlySection(section, state.held, state.offset) for section in sections]
        return state

    def _release(self, sections: list[DeviceSection], vmdesc: Vmdesc | None, *, early: bool = False) -> DeviceState:
        held = self._hold.release()
        offset = self._offset
        self._offset += len(held)
        return DeviceState(offset, held, held=held, sections=tuple(sections), vmdesc=vmdesc, early=early)

    def _late_vmdesc(self) -> AnyEvent | NeedData:
        assert self._located is not None
        found = read(VMDESCRIPTION_HEADER, self._data, self._offset)
        if found is None:
            return NEED_DATA
        header, size = found
        if header.length > self._hold.limit:
            raise DeviceStateTooLargeError(f"a vmdesc of {header.length} bytes", offset=self._offset)
        if len(self._data) < size + header.length:
            return NEED_DATA
        vmdesc = parse_vmdesc(bytes(self._data[size : size + header.length]), self._offset + size)
        held = self._located.held
        by_vmdesc = locate_by_vmdesc(held, len(held) - 1, vmdesc, (), self._located.offset)
        if [section.end for section in by_vmdesc] != [section.end for section in self._located.sections]:
            raise UnlocatableSectionError("footers and the late vmdesc disagree", offset=self._offset, section="vmdesc")
        self._state = State.DONE
        return LateVmdesc(*self._take(size + header.length))

    # --- the end, and errors

    def _nothing_more(self) -> NeedData:
        if self._data[: len(COLO_CHECKPOINT)] == COLO_CHECKPOINT:
            raise self._unsupported(*COLO)
        if len(self._data):
            raise self._too_long(self._offset)
        return NEED_DATA

    def _unsupported(self, feature: str, advice: str) -> UnsupportedFeatureError:
        return UnsupportedFeatureError(f"{feature} is not supported", offset=self._offset, advice=advice)

    def _too_long(self, end: int) -> MalformedStreamError:
        return MalformedStreamError("more bytes follow the end of the stream", offset=end)

    def _ended_early(self) -> MalformedStreamError:
        end = self._offset + len(self._hold) + len(self._data)
        if self._state is State.DEVICE_STATE:
            extra = self._hold.bytes_past_the_end(self._early, self._offset)
            if extra:
                return self._too_long(end - extra)
        return TruncatedStreamError(
            f"the stream ends where {self._state.value} should follow",
            offset=end,
            section=self._section_label(),
            advice="the source broke off, or the file was cut",
        )

    def _take(self, size: int) -> tuple[int, memoryview]:
        """Consume `size` bytes: return their offset and the bytes, an event's first two fields."""
        offset, raw = self._offset, self._data[:size]
        self._data = self._data[size:]
        self._offset += size
        return offset, raw

    def _section_label(self) -> str | None:
        if self._state is State.DEVICE_STATE:
            return "device state"
        if self._state is State.PACKAGE:
            return PACKAGE
        return None if self._iterables.at_hand is None else self._iterables.at_hand.label

    def _unexpected(self, byte: int) -> FormatError:
        if self._state is State.ITERABLE_FOOTER:
            return UnlocatableSectionError(
                "it has no footer; machine types before 2.4 send none",
                offset=self._offset,
                section=self._section_label(),
                advice="use a newer machine type, or send-section-footer=on",
            )
        return MalformedStreamError(f"byte {byte:#04x}, where {self._state.value} should follow", offset=self._offset)
