"""Reading the device state: it is held until its sections can be located, with the vmdesc or without it."""

from formats.errors import DeviceStateTooLargeError, FormatError, UnlocatableSectionError
from formats.frame.records import VMDESCRIPTION_HEADER, read
from formats.stream.broken import too_long
from formats.stream.events import LateVmdesc
from formats.stream.intake import Intake
from formats.vmstate.device_state import DeviceState
from formats.vmstate.footers import NO_VMDESC
from formats.vmstate.hold import DeviceStateHold, WholeState
from formats.vmstate.locators import DeviceSection, EarlySection, locate_by_vmdesc
from formats.vmstate.vmdesc import Vmdesc, parse_vmdesc

LABEL = "device state"
"""What errors call it, as the section that they arose in."""


class DeviceStateReader:
    """Reads the device sections, from the first one to the end of file and the vmdesc.

    Attributes:
        early: The sections that came before the iterable ones.
    """

    def __init__(self, intake: Intake, limit: int, *, take_trailing: bool = False) -> None:
        """Make it for one stream.

        Args:
            intake: What the stream brings.
            limit: How many bytes may be held.
            take_trailing: Whether what is at hand after the end is left there, and is no error.
        """
        self.early: list[EarlySection] = []
        self._in = intake
        self._take_trailing = take_trailing
        self._hold = DeviceStateHold(limit)
        self._overdue = False
        self._waived = False
        self._last_word = False
        self._located: DeviceState | None = None

    @property
    def held(self) -> int:
        """How many bytes are held."""
        return len(self._hold)

    @property
    def ends_like_the_end(self) -> bool:
        """Whether what is held could be all, were it not for the vmdesc that usually follows."""
        return self._hold.ends_like_the_end

    @property
    def bytes_past_the_end(self) -> int:
        """How many of the held bytes follow what is a whole device state, vmdesc included; 0 for none."""
        return self._hold.bytes_past_the_end(self.early, self._in.offset)

    def vmdesc_overdue(self, *, last_word: bool) -> None:
        """See `StreamParser.vmdesc_overdue`."""
        self._overdue = self.ends_like_the_end
        self._last_word = last_word

    def without_vmdesc(self) -> None:
        """See `StreamParser.without_vmdesc`."""
        self._waived = self.ends_like_the_end

    def release(self) -> bytearray:
        """Give up what is held."""
        return self._hold.release()

    def read(self, *, iterables_to_come: bool) -> DeviceState | None:
        """Take all that is at hand; return the device state once it is located.

        Args:
            iterables_to_come: Whether no iterable section has started yet, so that these may be early sections.

        Raises:
            UnlocatableSectionError: It cannot be cut into sections for certain.
            DeviceStateTooLargeError: It is more than may be held.
        """
        if len(self._in.data):
            located = self._take_in(iterables_to_come=iterables_to_come)
            if located is not None:
                return located
        if self._take_trailing and (self._in.ended or self._hold.full):
            return self._read_before_an_end()
        if self.ends_like_the_end and (self._overdue or self._waived or self._in.ended):
            return self._read_without_vmdesc()
        return None

    def _take_in(self, *, iterables_to_come: bool) -> DeviceState | None:
        """Hold what is at hand; return the state if that lets it be located."""
        intake, hold = self._in, self._hold
        # RAM after early sections, and what follows the stream, does not count against what may be held.
        room = hold.limit - len(hold) if iterables_to_come or self._take_trailing else len(intake.data)
        self._hold_more(intake.data[:room])
        intake.data = intake.data[room:]
        early = hold.locate_early(intake.offset) if iterables_to_come else None
        if early is not None:
            return self._early(early)
        if not self._take_trailing:
            self._hold_more(intake.data)
            intake.data = memoryview(b"")
        if not hold.find_vmdesc() or self._take_trailing:
            return None
        return self._released(*hold.locate_by_vmdesc(self.early, intake.offset))

    def _hold_more(self, data: memoryview) -> None:
        hold, offset = self._hold, self._in.offset
        try:
            hold.add(data, offset)
        except DeviceStateTooLargeError:
            hold.find_vmdesc()
            if past := self.bytes_past_the_end:
                raise too_long(offset + len(hold) - past) from None
            raise

    def _early(self, sections: list[DeviceSection]) -> DeviceState:
        """Device sections before RAM, as virtio-mem sends: they end where an iterable section starts."""
        self._in.data = self._hold.cut(sections[-1].end, self._in.data)
        state = self._released(sections, None, early=True)
        self.early += [EarlySection(section, state.held, state.offset) for section in sections]
        return state

    def _read_before_an_end(self) -> DeviceState | None:
        """Locate the sections where what is held, all or as much as may be, goes on after the end of the stream.

        Whatever a guest has in its devices or memory may look like another end, before the true one or, from an older
        state of it in the same volume, after that. So all that is held is looked at, and two ends are one too many.
        """
        hold, offset = self._hold, self._in.offset
        problem: FormatError | None = None
        whole: list[WholeState] = []
        try:
            whole = hold.whole_states(self.early, offset)
        except FormatError as error:
            problem = error
        if len(whole) > 1:
            raise UnlocatableSectionError(
                f"the stream may end at {offset + whole[0].end:#x} or at {offset + whole[1].end:#x}, and what follows "
                "is an older state, or the guest's forgery",
                offset=offset,
                section=LABEL,
                advice=f"if you know which it is, give a copy of so many bytes of it: head -c {offset + whole[0].end}",
            )
        if whole:
            return self._before_the_rest(whole[0].end, whole[0].sections, whole[0].vmdesc)
        sections = None if problem is not None else hold.locate_before_an_end(self.early, offset)
        if sections is not None:
            return self._before_the_rest(sections[-1].end + 1, sections, None)
        if problem is not None:
            raise problem
        if len(self._in.data):
            raise hold.too_large(offset)
        return None

    def _before_the_rest(self, end: int, sections: list[DeviceSection], vmdesc: Vmdesc | None) -> DeviceState:
        """Release what is held before an end, and leave the rest for what comes after it."""
        self._in.data = self._hold.cut(end, self._in.data)
        return self._released(sections, vmdesc)

    def _read_without_vmdesc(self) -> DeviceState | None:
        sections = self._located_by_footers()
        if sections is not None:
            self._located = self._released(sections, None)
            return self._located
        if self._last_word:
            raise UnlocatableSectionError(
                "the source sends no more, and no footers cut what it sent into sections",
                offset=self._in.offset,
                section=LABEL,
                advice=NO_VMDESC,
            )
        return None

    def _located_by_footers(self) -> list[DeviceSection] | None:
        """Locate the sections without a vmdesc; None when that is not possible, or not yet to be decided."""
        only_if_certain = self._waived and not self._overdue
        self._overdue = self._waived = False
        try:
            return self._hold.locate_by_footers(self.early, self._in.offset)
        except UnlocatableSectionError:
            if only_if_certain and not self._in.ended:
                return None
            raise

    def _released(self, sections: list[DeviceSection], vmdesc: Vmdesc | None, *, early: bool = False) -> DeviceState:
        held = self._hold.release()
        offset = self._in.offset
        self._in.offset += len(held)
        return DeviceState(offset, held, held=held, sections=tuple(sections), vmdesc=vmdesc, early=early)

    def late_vmdesc(self) -> LateVmdesc | None:
        """Read a vmdesc that comes after the state was located without it; None when it is not all there.

        Raises:
            UnlocatableSectionError: It describes other sections than footers located.
            DeviceStateTooLargeError: It is larger than what may be held.
        """
        assert self._located is not None
        intake = self._in
        found = read(VMDESCRIPTION_HEADER, intake.data, intake.offset)
        if found is None:
            return None
        header, size = found
        if header.length > self._hold.limit:
            raise DeviceStateTooLargeError(f"a vmdesc of {header.length} bytes", offset=intake.offset)
        if len(intake.data) < size + header.length:
            return None
        vmdesc = parse_vmdesc(bytes(intake.data[size : size + header.length]), intake.offset + size)
        held = self._located.held
        by_vmdesc = locate_by_vmdesc(held, len(held) - 1, vmdesc, (), self._located.offset)
        if [section.end for section in by_vmdesc] != [section.end for section in self._located.sections]:
            raise UnlocatableSectionError(
                "footers and the late vmdesc disagree", offset=intake.offset, section="vmdesc"
            )
        return LateVmdesc(*intake.take(size + header.length))
