"""Where each device section begins and ends; two locators that must agree.

Device sections have no length on the wire. The vmdesc gives it exactly. Without a vmdesc the footers give it: a body
ends where a footer with its section id is followed by another section's header or by the end. Bodies hold bytes that
the guest chose, so footers may be forged: all the ways to cut the device state are counted, and unless there is just
one, nothing is located. Where there is a vmdesc, every header, subsection header and footer is checked against it.
"""

import re
from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import zip_longest
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.errors import UnlocatableSectionError
from formats.frame.records import RecordType
from formats.iterable.kinds import ITERABLE
from formats.vmstate import cpu_section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from formats.vmstate.vmdesc import Layout, Vmdesc

FOOTER_SIZE: Final = 5
_LONGEST_HEADER: Final = 1 + 4 + 1 + 255 + 4 + 4
_MOST_CUTS: Final = 1 << 16
"""More places than this where a section might begin are not weighed: a virt machine has some twenty sections."""

_MOST_STARTS: Final = 64
"""More places than this where an iterable section might start, before one fits, are not weighed."""

_HEADER_START: Final = Struct(">BIB")
_HEADER_END: Final = Struct(">II")
_NAME: Final = re.compile(rb"[ -~]+")

_CUT: Final = re.compile(rb"\x7e(?=.{4}[\x00\x01\x04])", re.DOTALL)
NO_VMDESC: Final = "let the source send its vmdesc (machine property suppress-vmdesc=off)"
"""The way out where footers do not do."""


class DeviceSection(NamedTuple):
    """One located FULL section.

    Attributes:
        name: The device's idstr.
        instance_id: Its instance; for `cpu` the vCPU's index.
        version_id: The version of its vmstate.
        section_id: The id that its footer repeats.
        start: Where its type byte stands in the held buffer.
        body: Where its body begins in the held buffer.
        body_end: Where its body ends, and the footer begins.
        end: Where its footer ends.
        layout: What the vmdesc says of the body; None without a vmdesc.
    """

    name: str
    instance_id: int
    version_id: int
    section_id: int
    start: int
    body: int
    body_end: int
    end: int
    layout: "Layout | None" = None

    @property
    def label(self) -> str:
        """The section as it is named in errors."""
        return f"'{self.name}' instance {self.instance_id}"


@dataclass(frozen=True, slots=True)
class EarlySection:
    """A section before the iterable ones, kept until the vmdesc can be asked whether footers located it rightly.

    Attributes:
        section: Its bounds, counted from the start of `held`.
        held: The device state that it is in.
        offset: Where that began in the stream.
    """

    section: DeviceSection
    held: bytearray
    offset: int


class _Header(NamedTuple):
    """A section header that stands, or seems to stand, at `start`."""

    start: int
    body: int
    section_id: int
    name: str
    instance_id: int
    version_id: int

    def section(self, body_end: int, layout: "Layout | None" = None) -> DeviceSection:
        return DeviceSection(
            name=self.name,
            instance_id=self.instance_id,
            version_id=self.version_id,
            section_id=self.section_id,
            start=self.start,
            body=self.body,
            body_end=body_end,
            end=body_end + FOOTER_SIZE,
            layout=layout,
        )


def locate_by_vmdesc(
    held: bytearray, end: int, vmdesc: "Vmdesc", early: "Sequence[EarlySection]", base: int
) -> list[DeviceSection]:
    """Locate the sections as the vmdesc describes them.

    Args:
        held: The device state, from the first section's type byte on.
        end: Where the sections end in it, and the end of file stands.
        vmdesc: The description of all the device sections of the stream.
        early: The sections that went before the iterable ones; the vmdesc describes them first.
        base: Where `held` begins in the stream; used in errors only.

    Raises:
        UnlocatableSectionError: The vmdesc and the bytes disagree.
    """
    _check_early(early, vmdesc)
    sections: list[DeviceSection] = []
    position = 0
    for device in vmdesc.devices[len(early) :]:
        header = _header_at(held, position, end)
        if header is None or (header.name, header.instance_id) != (device.name, device.instance_id):
            found = "no section" if header is None else f"{header.name!r} instance {header.instance_id}"
            raise UnlocatableSectionError(
                f"the vmdesc has {device.name!r} instance {device.instance_id} here, the stream {found}",
                offset=base + position,
            )
        section = header.section(header.body + device.layout.size, device.layout)
        problem = _disagreement(held, end, section)
        if problem is not None:
            where, message = problem
            raise UnlocatableSectionError(message, offset=base + where, section=section.label)
        sections.append(section)
        position = section.end
    if position != end:
        raise UnlocatableSectionError(
            f"the vmdesc's sections end here, the device state {end - position} bytes later", offset=base + position
        )
    return sections


def _check_early(early: "Sequence[EarlySection]", vmdesc: "Vmdesc") -> None:
    """Compare the sections that footers alone located with the vmdesc, which describes them first."""
    for one, device in zip_longest(early, vmdesc.devices[: len(early)]):
        section = one.section
        problem = None
        if device is None or (section.name, section.instance_id) != (device.name, device.instance_id):
            problem = section.start, "the vmdesc does not have it here"
        elif section.body_end - section.body != device.layout.size:
            size = section.body_end - section.body
            problem = section.start, f"footers give it {size} bytes, the vmdesc {device.layout.size}"
        else:
            problem = _disagreement(one.held, len(one.held), section._replace(layout=device.layout))
        if problem is not None:
            where, message = problem
            raise UnlocatableSectionError(message, offset=one.offset + where, section=section.label)


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
    first = _header_at(held, 0, len(held))
    if first is None:
        return None
    headers = [first]
    tried = 0
    for match in _CUT.finditer(held):
        cut = match.end() + FOOTER_SIZE - 1
        header = _header_at(held, cut, len(held))
        if header is not None:
            headers.append(header)
        elif end is None and _starts_iterable(held, cut):
            # What comes after the first that fits is RAM, which holds anything; the vmdesc will tell if it was wrong.
            sections = _only_way(held, headers, cut, base)
            tried += 1
            if sections is not None:
                return sections
        if len(headers) > _MOST_CUTS or tried > _MOST_STARTS:
            raise _ambiguous("more footers than can be weighed", base)
    return None if end is None else _only_way(held, headers, end, base)


def _only_way(held: bytearray, headers: "list[_Header]", end: int, base: int) -> list[DeviceSection] | None:
    """Return the sections of the one way that leads from the first header to the end; None when none does."""
    ways = _Ways(held, end)
    for header in reversed(headers):
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
    """How many ways lead from a cut to the end, counted from the back.

    Attributes:
        counts: How many lead on from a cut, by its position; 2 stands for more, too.
        following: The next cut on one of them.
    """

    def __init__(self, held: bytearray, end: int) -> None:
        self.counts: dict[int, int] = {end: 1}
        self.following: dict[int, int] = {}
        self._held = held
        self._ways_by_id: defaultdict[int, int] = defaultdict(int)
        self._next_by_id: dict[int, int] = {}
        self._near: deque[tuple[int, int]] = deque()
        self._add(end)

    def weigh(self, header: "_Header") -> None:
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

    def _by_footers(self, header: "_Header") -> tuple[int, int | None]:
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

    def _by_schema(self, header: "_Header", end: int) -> tuple[int, int]:
        step = end + FOOTER_SIZE
        fits = _footer_at(self._held, end) == header.section_id
        return self.counts.get(step, 0) if fits else 0, step


def _exact_end(held: bytearray, header: _Header) -> int | None:
    """Return where the section's body ends by its own schema; None when no schema tells."""
    if header.name != cpu_section.IDSTR or header.version_id != cpu_section.VERSION:
        return None
    return cpu_section.quick_body_end(held, header.body, len(held))


def _starts_iterable(held: bytearray, position: int) -> bool:
    header = _header_at(held, position, len(held), RecordType.SECTION_START)
    return header is not None and header.name in ITERABLE


def _header_at(
    held: bytearray, position: int, end: int, record_type: RecordType = RecordType.SECTION_FULL
) -> _Header | None:
    """Read the section header at `position`; None when there is none, or none with a name that QEMU could have."""
    # `SECTION_HEADER` by hand: forged headers may be many, and those of the vCPUs are read while the guest stands.
    if end - position < _HEADER_START.size or held[position] != record_type:
        return None
    _, section_id, length = _HEADER_START.unpack_from(held, position)
    name_start = position + _HEADER_START.size
    body = name_start + length + _HEADER_END.size
    if not length or body > end:
        return None
    name = bytes(held[name_start : name_start + length])
    if not _NAME.fullmatch(name):
        return None
    instance_id, version_id = _HEADER_END.unpack_from(held, name_start + length)
    return _Header(position, body, section_id, name.decode("ascii"), instance_id, version_id)


def _footer_at(held: bytearray, position: int) -> int | None:
    """Return the section id of the footer at `position`; None when there is no footer."""
    if len(held) - position < FOOTER_SIZE or held[position] != RecordType.SECTION_FOOTER:
        return None
    return int.from_bytes(held[position + 1 : position + FOOTER_SIZE], "big")


def _disagreement(held: bytearray, end: int, section: DeviceSection) -> tuple[int, str] | None:
    """Find where the bytes of a section, cut as the vmdesc says, are not what the vmdesc says."""
    layout = section.layout
    assert layout is not None
    if section.end > end:
        return section.start, f"the vmdesc gives it {layout.size} bytes, more than there are"
    if layout.version is not None and layout.version != section.version_id:
        return section.start, f"the vmdesc has version {layout.version}, its header {section.version_id}"
    for place, expected in layout.headers:
        where = section.body + place
        if held[where : where + len(expected)] != expected:
            return where, f"the vmdesc has the subsection {expected[2:-4].decode()!r} here, the stream has not"
    if _footer_at(held, section.body_end) != section.section_id:
        return section.body_end, f"the vmdesc gives it {layout.size} bytes, and no footer stands after them"
    exact = cpu_section.body_end(held, section.body, section.body_end) if layout.field("cpreg_vmstate_values") else None
    if exact is not None and exact != section.body_end:
        return exact, "the vmdesc and the layout of version 22 disagree on its length"
    return None


def _ambiguous(message: str, base: int) -> UnlocatableSectionError:
    return UnlocatableSectionError(
        f"the device state cannot be cut into sections for certain: {message}, and there is no vmdesc",
        offset=base,
        advice=NO_VMDESC,
    )
