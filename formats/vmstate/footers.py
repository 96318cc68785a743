"""Where each device section begins and ends, as the footers tell where there is no vmdesc.

A body ends where a footer with its section id is followed by another section's header or by the end. Bodies hold bytes
that the guest chose, so footers may be forged: all the ways to cut the device state are counted, and unless there is
just one, nothing is located. Every machine's state holds a processor, so ways that have none are passed over where
others do: else six bytes of a clock, read as a footer of section 0 and an end, would leave a doubt once in 256 streams.
"""

import re
from collections import defaultdict, deque
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from formats.errors import UnlocatableSectionError
from formats.frame.records import RecordType
from formats.iterable.kinds import is_iterable
from formats.vmstate import cpu_section
from formats.vmstate.locators import FOOTER_SIZE, DeviceSection, Header, footer_at, header_at

if TYPE_CHECKING:
    from collections.abc import Iterator

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
            sections = _only_way(held, headers, [cut], base, early=True)
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


def _only_way(
    held: bytearray, headers: list[Header], ends: list[int], base: int, *, early: bool = False
) -> list[DeviceSection] | None:
    """Return the sections of the one way that leads from the first header to an end; None when none does.

    Args:
        held: The device state.
        headers: What seem to be section headers, in their order.
        ends: Where the sections may end, in their order.
        base: Where `held` begins in the stream.
        early: Whether these are early sections, which need not have a processor among them.
    """
    ways = _Ways(held)
    ends_left = list(ends)
    for header in reversed(headers):
        while ends_left and ends_left[-1] > header.start:
            ways.may_end_at(ends_left.pop())
        ways.weigh(header)
    onward = ways.by_cut.get(0)
    if onward is None:
        return None
    if (onward.full if onward.full and not early else onward.bare + onward.full) > 1:
        raise _ambiguous("its footers allow more than one way to cut it into sections", base)
    by_start = {header.start: header for header in headers}
    return [by_start[start].section(cut - FOOTER_SIZE) for start, cut in pairwise(ways.cuts())]


@dataclass(slots=True)
class _Onward:
    """How many ways lead on to an end, and the next cut on one of them, 0 at the end.

    Attributes:
        bare: How many there are without a section of a processor.
        bare_cut: The next cut on one of these.
        full: How many there are with a section of a processor, or more of them.
        full_cut: The next cut on one of these.
    """

    bare: int = 0
    bare_cut: int = 0
    full: int = 0
    full_cut: int = 0

    def add(self, cut: int, there: "_Onward") -> None:
        """Add the ways that lead on from a cut."""
        if there.bare:
            self.bare += there.bare
            self.bare_cut = cut
        if there.full:
            self.full += there.full
            self.full_cut = cut

    @property
    def next_cut(self) -> int:
        """The next cut on one of the ways with a processor, if there are any."""
        return self.full_cut if self.full else self.bare_cut

    def pass_processor(self) -> None:
        """Make them ways that begin with a section of a processor."""
        if not self.full:
            self.full_cut = self.bare_cut
        self.full += self.bare
        self.bare = 0


class _Ways:
    """How many ways lead from a cut to an end, counted from the back.

    Attributes:
        by_cut: Those that lead on from a cut, by its position, where there are any; 2 stands for more, too.
    """

    def __init__(self, held: bytearray) -> None:
        self.by_cut: dict[int, _Onward] = {}
        self._held = held
        self._by_id: defaultdict[int, _Onward] = defaultdict(_Onward)
        self._near: deque[tuple[int, int]] = deque()

    def may_end_at(self, cut: int) -> None:
        """Let the sections end at a cut; those further back were weighed before."""
        self._add(cut, _Onward(bare=1))

    def weigh(self, header: Header) -> None:
        """Count the ways that begin with the section of a header; those further back were weighed before."""
        exact = _exact_end(self._held, header)
        onward = self._by_footers(header) if exact is None else self._by_schema(header, exact)
        if onward.bare or onward.full:
            if header.name == cpu_section.IDSTR:
                onward.pass_processor()
            onward.bare, onward.full = min(onward.bare, 2), min(onward.full, 2)
            self._add(header.start, onward)

    def cuts(self) -> "Iterator[int]":
        """Yield the cuts of one of the ways from the start, 0, to an end."""
        cut = 0
        yield cut
        while cut := self.by_cut[cut].next_cut:
            yield cut

    def _add(self, cut: int, onward: _Onward) -> None:
        """Let sections end at a cut, by the id in the footer before it."""
        self.by_cut[cut] = onward
        if cut:
            self._near.append((cut, int.from_bytes(self._held[cut - 4 : cut], "big")))

    def _by_footers(self, header: Header) -> _Onward:
        """Sum up the ways on from all cuts whose footer has the header's id, and lies behind the header."""
        near = self._near
        while near and near[0][0] >= header.start + _LONGEST_HEADER + FOOTER_SIZE:
            far, footer_id = near.popleft()
            self._by_id[footer_id].add(far, self.by_cut[far])
        onward = _Onward()
        if header.section_id in self._by_id:
            onward = replace(self._by_id[header.section_id])
        for close, footer_id in near:
            if footer_id == header.section_id and close >= header.body + FOOTER_SIZE:
                onward.add(close, self.by_cut[close])
        return onward

    def _by_schema(self, header: Header, end: int) -> _Onward:
        onward, cut = _Onward(), end + FOOTER_SIZE
        if footer_at(self._held, end) == header.section_id and cut in self.by_cut:
            onward.add(cut, self.by_cut[cut])
        return onward


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
