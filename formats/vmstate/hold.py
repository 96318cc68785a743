"""Holding the device state until it is all there and its sections are located; its size is bounded."""

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.errors import DeviceStateTooLargeError, FormatError, UnlocatableSectionError
from formats.frame.records import RecordType
from formats.vmstate import footers, locators
from formats.vmstate.vmdesc import Vmdesc, parse_vmdesc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from formats.frame.event import Raw
    from formats.vmstate.locators import DeviceSection, EarlySection

_VMDESC: Final = re.compile(rb"\x7e(?=.{4}\x00\x06(.{4})\{)", re.DOTALL)
_MOST_WEIGHED: Final = 4
"""Times the held bytes; of so many bytes in all, vmdescs and what looks like them, the sections are compared."""

_VMDESC_HEAD: Final = 5 + 1 + 5 + 1
"""Bytes of a footer, the end of file, a vmdesc's header, and the JSON's first."""


class WholeState(NamedTuple):
    """A device state that is complete.

    Attributes:
        end: Where its vmdesc ends in the held bytes.
        sections: Its sections.
        vmdesc: What describes them.
    """

    end: int
    sections: "list[DeviceSection]"
    vmdesc: Vmdesc


class DeviceStateHold:
    """The bytes from the first device section on.

    Attributes:
        limit: How many bytes may be held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = bytearray()
        self._searched = 0
        self._json_start_by_end: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def full(self) -> bool:
        """Whether no more may be held."""
        return len(self._held) >= self.limit

    @property
    def ends_like_the_end(self) -> bool:
        """Whether the last bytes are a footer and an end of file, or look like it."""
        held = self._held
        return len(held) > 6 and held[-1] == RecordType.EOF and held[-6] == RecordType.SECTION_FOOTER

    def add(self, data: "Raw", base: int) -> None:
        """Hold more bytes; `base` is where the held ones begin in the stream.

        Raises:
            DeviceStateTooLargeError: They are more than the limit.
        """
        self._held += data
        if len(self._held) > self.limit:
            raise self.too_large(base)

    def too_large(self, base: int) -> DeviceStateTooLargeError:
        """Return the error for more device state than the limit; `base` is where the held bytes begin in the stream."""
        return DeviceStateTooLargeError(
            f"the device state exceeds {self.limit} bytes",
            offset=base,
            section="device state",
            advice="raise --device-state-limit if the guest's devices are known to have that much",
        )

    def find_vmdesc(self) -> bool:
        """Tell whether a vmdesc ends where the held bytes end.

        A guest can put what looks like a vmdesc into a device's state, and might have it end where a chunk ends. It is
        then taken for the end, and the first byte after it breaks the migration, before the destination has its state.
        """
        for match in _VMDESC.finditer(self._held, max(0, self._searched - _VMDESC_HEAD)):
            json_start = match.start() + 5 + 1 + 5
            self._json_start_by_end[json_start + int.from_bytes(match[1], "big")] = json_start
        self._searched = len(self._held)
        return len(self._held) in self._json_start_by_end

    def locate_by_vmdesc(self, early: "Sequence[EarlySection]", base: int) -> "tuple[list[DeviceSection], Vmdesc]":
        """Locate the sections by the vmdesc that `find_vmdesc` found; see `locators.locate_by_vmdesc`."""
        json_start = self._json_start_by_end[len(self._held)]
        vmdesc = parse_vmdesc(bytes(self._held[json_start:]), base + json_start)
        return locators.locate_by_vmdesc(self._held, json_start - 6, vmdesc, early, base), vmdesc

    def bytes_past_the_end(self, early: "Sequence[EarlySection]", base: int) -> int:
        """Return how many held bytes follow a device state that is complete; 0 when it is not known to be."""
        try:
            whole = self.whole_states(early, base)
        except FormatError:
            return 0
        return len(self._held) - whole[0].end if whole else 0

    def whole_states(self, early: "Sequence[EarlySection]", base: int) -> list[WholeState]:
        """Return the device states, each from the first held byte to the end of a vmdesc that describes it.

        The cost is linear in what is held: forged vmdescs may be many, and each may be nearly as long as all of it.

        Raises:
            MalformedStreamError, UnlocatableSectionError: There is none, and this is what is wrong with the first that
                seemed to be one; nothing is raised where nothing did.
            UnlocatableSectionError: There are more that seem to be one than can be weighed.
        """
        whole: list[WholeState] = []
        problem: FormatError | None = None
        weight = 0
        for end, json_start in sorted(self._json_start_by_end.items()):
            if end > len(self._held):
                continue
            weight += end - json_start
            if weight > _MOST_WEIGHED * len(self._held):
                raise UnlocatableSectionError(
                    "more that looks like a vmdesc than can be weighed", offset=base, section="device state"
                )
            try:
                vmdesc = parse_vmdesc(bytes(self._held[json_start:end]), base + json_start)
                sections = locators.locate_by_vmdesc(self._held, json_start - 6, vmdesc, early, base)
            except FormatError as error:
                problem = problem or error
            else:
                whole.append(WholeState(end, sections, vmdesc))
        if not whole and problem is not None:
            raise problem
        return whole

    def locate_by_footers(self, early: "Sequence[EarlySection]", base: int) -> "list[DeviceSection] | None":
        """Locate the sections of a state whose last byte is the end of file; see `footers.locate_by_footers`."""
        sections = footers.locate_by_footers(self._held, len(self._held) - 1, base)
        return self._checked(sections, early, base)

    def locate_before_an_end(self, early: "Sequence[EarlySection]", base: int) -> "list[DeviceSection] | None":
        """Locate the sections of a state that ends somewhere; see `footers.locate_before_an_end`."""
        return self._checked(footers.locate_before_an_end(self._held, base), early, base)

    def _checked(
        self, sections: "list[DeviceSection] | None", early: "Sequence[EarlySection]", base: int
    ) -> "list[DeviceSection] | None":
        if sections is not None and early:
            raise UnlocatableSectionError(
                "it stands before RAM, and there is no vmdesc to check its length by",
                offset=base,
                section=early[0].section.label,
                advice=footers.NO_VMDESC,
            )
        return sections

    def locate_early(self, base: int) -> "list[DeviceSection] | None":
        """Locate sections that an iterable section follows; see `footers.locate_by_footers`."""
        return footers.locate_by_footers(self._held, None, base)

    def cut(self, end: int, more: "Raw") -> memoryview:
        """Take out the bytes from `end` on, and return them with `more` behind them."""
        # What is cut off may be a volume's many megabytes of something else: the state is what is copied.
        rest, self._held = self._held, self._held[:end]
        rest += more
        return memoryview(rest)[end:]

    def release(self) -> bytearray:
        """Let go of what is held."""
        held, self._held = self._held, bytearray()
        self._searched = 0
        self._json_start_by_end.clear()
        return held
