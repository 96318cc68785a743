"""Where each device section begins and ends, as the vmdesc says; `footers` is for streams without one.

Device sections have no length on the wire. The vmdesc gives it exactly, and every header, subsection header and footer
is checked against it.
"""

import re
from dataclasses import dataclass
from itertools import zip_longest
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.errors import UnlocatableSectionError
from formats.frame.records import RecordType
from formats.vmstate import cpu_section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from formats.vmstate.vmdesc import Layout, Vmdesc

FOOTER_SIZE: Final = 5
_HEADER_START: Final = Struct(">BIB")
_HEADER_END: Final = Struct(">II")
_NAME: Final = re.compile(rb"[ -~]+")


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


class Header(NamedTuple):
    """A section header that stands, or seems to stand, at `start`."""

    start: int
    body: int
    section_id: int
    name: str
    instance_id: int
    version_id: int

    def section(self, body_end: int, layout: "Layout | None" = None) -> DeviceSection:
        """Return the section that it begins, whose body ends at `body_end`."""
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
        header = header_at(held, position, end)
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


def header_at(
    held: bytearray, position: int, end: int, record_type: RecordType = RecordType.SECTION_FULL
) -> Header | None:
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
    return Header(position, body, section_id, name.decode("ascii"), instance_id, version_id)


def footer_at(held: bytearray, position: int) -> int | None:
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
    if footer_at(held, section.body_end) != section.section_id:
        return section.body_end, f"the vmdesc gives it {layout.size} bytes, and no footer stands after them"
    exact = cpu_section.body_end(held, section.body, section.body_end) if layout.field("cpreg_vmstate_values") else None
    if exact is not None and exact != section.body_end:
        return exact, "the vmdesc and the layout of version 22 disagree on its length"
    return None
