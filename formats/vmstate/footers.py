"""Where each device section begins and ends, as the footers tell where there is no vmdesc.

A body ends where a footer with its section id is followed by another section's header or by the end. Bodies hold bytes
that the guest chose, so footers may be forged: all the ways to cut the device state are counted, and unless there is
just one, nothing is located.
"""

import re
from collections import defaultdict, deque
from typing import Final

from formats.errors import UnlocatableSectionError
from formats.frame.records import RecordType
from formats.iterable.kinds import is_iterable
from formats.vmstate import cpu_section
from formats.vmstate.locators import FOOTER_SIZE, DeviceSection, Header, footer_at, header_at

_LONGEST_HEADER: Final = 1 + 4 + 1 + 255 + 4 + 4
_MOST_CUTS: Final = 1 << 16
"""More places than this where a section might begin are not weighed: a virt machine has some twenty sections."""

_MOST_STARTS: Final = 64
"""More places than this where an iterable section might start, before one fits, are not weighed."""

_CUT: Final = re.compile(rb"\x7e(?=.{4}[\x00\x01\x04])", re.DOTALL)
NO_VMDESC: Final = "let the source send its vmdesc (machine property suppress-vmdesc=off)"
"""The way out where footers do not do."""


def locate_by_footers(held: bytearray, end: int | None, base: int) -> list[DeviceSection] | None:
    """Locate the sections by their footers and, where they are arm64 processors, by their schema.

    Args:
        held: The device state, from the first section's type byte on.
        end: Where the sections end in it, and the end of file stands; None for early sections, which end where an
            iterable section starts.
        base: Where `held` begins in the stream; used in errors only.

    Returns:
        The sections; None when there is no way to cut the state, as when it is not all there.

    Raises:
        UnlocatableSectionError: There is more than one way.
    """
    first = header_at(held, 0, len(held))
    if first is None:
        return None
    headers = [first]
    tried = 0
    for match in _CUT.finditer(held):
        cut = match.end() + FOOTER_SIZE - 1
        header = header_at(held, cut, len(held))
        if header is not None:
            headers.append(header)
        elif end is None and _starts_iterable(held, cut):
            # What comes after the first that fits is RAM, which holds anything; the vmdesc will tell if it was wrong.
            sections = _only_way(held, headers, [cut], base)
            tried += 1
            if sections is not None:
                return sections
        if len(headers) > _MOST_CUTS or tried > _MOST_STARTS:
            raise _ambiguous("more footers than can be weighed", base)
    return None if end is None else _only_way(held, headers, [end], base)


def locate_before_an_end(held: bytearray, base: int) -> list[DeviceSection] | None:
    """Locate the sections of a state without a vmdesc that ends somewhere in what is held.

    An end is where a footer is followed by the end of file, and that not by a vmdesc. Takes, returns and raises as
    `locate_by_footers` does; the end of file stands where the last section ends.
    """
    first = header_at(held, 0, len(held))
    if first is None:
        return None
    headers, ends = [first], []
    for match in _CUT.finditer(held):
        cut = match.end() + FOOTER_SIZE - 1
        if held[cut] == RecordType.EOF and held[cut + 1 : cut + 2] != bytes([RecordType.VMDESCRIPTION]):
            ends.append(cut)
        elif (header := header_at(held, cut, len(held))) is not None:
            headers.append(header)
        if len(headers) + len(ends) > _MOST_CUTS:
            raise _ambiguous("more footers than can be weighed", base)
    return _only_way(held, headers, ends, base)


def _only_way(held: bytearray, headers: list[Header], ends: list[int], base: int) -> list[DeviceSection] | None:
    """Return the sections of the one way that leads from the first header to an end; None when none does.

    Args:
        held: The device state.
        headers: What seem to be section headers, in their order.
        ends: Where the sections may end, in their order.
        base: Where `held` begins in the stream.
    """
    ways = _Ways(held)
    ends_left = list(ends)
    for header in reversed(headers):
        while ends_left and ends_left[-1] > header.start:
            ways.may_end_at(ends_left.pop())
        ways.weigh(header)
    if 0 not in ways.counts:
        return None
    if ways.counts[0] > 1:
        raise _ambiguous("its footers allow more than one way to cut it into sections", base)
    by_start = {header.start: header for header in headers}
    sections = []
    position = 0
    while position in ways.following:
        sections.append(by_start[position].section(ways.following[position] - FOOTER_SIZE))
        position = ways.following[position]
    return sections


class _Ways:
    """How many ways lead from a cut to an end, counted from the back.

    Attributes:
        counts: How many lead on from a cut, by its position; 2 stands for more, too.
        following: The next cut on one of them.
    """

    def __init__(self, held: bytearray) -> None:
        self.counts: dict[int, int] = {}
        self.following: dict[int, int] = {}
        self._held = held
        self._ways_by_id: defaultdict[int, int] = defaultdict(int)
        self._next_by_id: dict[int, int] = {}
        self._near: deque[tuple[int, int]] = deque()

    def may_end_at(self, cut: int) -> None:
        """Let the sections end at a cut; those further back were weighed before."""
        self.counts[cut] = 1
        self._add(cut)

    def weigh(self, header: Header) -> None:
        """Count the ways that begin with the section of a header; those further back were weighed before."""
        cut = header.start
        exact = _exact_end(self._held, header)
        count, step = self._by_footers(header) if exact is None else self._by_schema(header, exact)
        if count and step is not None:
            self.counts[cut], self.following[cut] = min(count, 2), step
            self._add(cut)

    def _add(self, cut: int) -> None:
        """Let sections end at a cut, by the id in the footer before it."""
        if cut:
            self._near.append((cut, int.from_bytes(self._held[cut - 4 : cut], "big")))

    def _by_footers(self, header: Header) -> tuple[int, int | None]:
        """Sum up the ways on from all cuts whose footer has the header's id, and lies behind the header."""
        near = self._near
        while near and near[0][0] >= header.start + _LONGEST_HEADER + FOOTER_SIZE:
            far, footer_id = near.popleft()
            self._ways_by_id[footer_id] += self.counts[far]
            self._next_by_id[footer_id] = far
        count = self._ways_by_id[header.section_id]
        step = self._next_by_id.get(header.section_id)
        for close, footer_id in near:
            if footer_id == header.section_id and close >= header.body + FOOTER_SIZE:
                count += self.counts[close]
                step = close
        return count, step

    def _by_schema(self, header: Header, end: int) -> tuple[int, int]:
        step = end + FOOTER_SIZE
        fits = footer_at(self._held, end) == header.section_id
        return self.counts.get(step, 0) if fits else 0, step


def _exact_end(held: bytearray, header: Header) -> int | None:
    """Return where the section's body ends by its own schema; None when no schema tells."""
    if header.name != cpu_section.IDSTR or header.version_id != cpu_section.VERSION:
        return None
    return cpu_section.quick_body_end(held, header.body, len(held))


def _starts_iterable(held: bytearray, position: int) -> bool:
    header = header_at(held, position, len(held), RecordType.SECTION_START)
    return header is not None and is_iterable(header.name)


def _ambiguous(message: str, base: int) -> UnlocatableSectionError:
    return UnlocatableSectionError(
        f"the device state cannot be cut into sections for certain: {message}, and there is no vmdesc",
        offset=base,
        advice=NO_VMDESC,
    )
