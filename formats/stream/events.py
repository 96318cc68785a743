"""What the parser tells of a stream. Every byte of the stream is in the `raw` of just one event, in order.

(Bytes that the caller chose not to feed are in none: `MappedPages` has their number.)

So output equals input where every event's `raw` is passed on; that is how byte identity is kept. `raw` may be a view of
the caller's own buffer: it is good until the next `feed`.
"""

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from formats.frame.records import CommandType, RecordType

if TYPE_CHECKING:
    from formats.vmstate.locators import DeviceSection
    from formats.vmstate.vmdesc import Vmdesc

Raw = bytes | bytearray | memoryview


class NeedData(enum.Enum):
    """The type of `NEED_DATA`: no event until more bytes are fed."""

    NEED_DATA = enum.auto()


NEED_DATA = NeedData.NEED_DATA


@dataclass(frozen=True, slots=True)
class Event:
    """A piece of the stream: where it begins, in bytes from the stream's start, and its bytes."""

    offset: int
    raw: Raw = field(repr=False)


@dataclass(frozen=True, slots=True)
class FileHeader(Event):
    """`QEVM` and the version of the stream format, 3."""

    version: int


@dataclass(frozen=True, slots=True)
class Configuration(Event):
    """CONFIGURATION: the machine type, and what its subsections say.

    Attributes:
        machine: The machine type, such as `virt-7.2`.
        page_bits: Bits of a target page's size; None when the stream does not say.
        capabilities: The capabilities that the source asks the destination to have, too.
        uuid: The guest's UUID, 16 bytes; None when the stream does not say.
    """

    machine: str
    page_bits: int | None
    capabilities: tuple[str, ...]
    uuid: bytes | None


@dataclass(frozen=True, slots=True)
class Command(Event):
    """COMMAND and its payload."""

    command: CommandType
    payload: bytes


@dataclass(frozen=True, slots=True)
class SectionBegin(Event):
    """SECTION_START, SECTION_PART or SECTION_END: an iterable section begins; PART and END repeat what START said."""

    type: RecordType
    section_id: int
    name: str
    instance_id: int
    version_id: int


@dataclass(frozen=True, slots=True)
class IterableData(Event):
    """A stretch of an iterable section's body; where it is cut means nothing."""


@dataclass(frozen=True, slots=True)
class MappedPages(Event):
    """A stretch of an iterable section's body that was stepped over, not fed; `raw` is empty.

    Attributes:
        length: Its length in bytes.
    """

    length: int


@dataclass(frozen=True, slots=True)
class SectionFooter(Event):
    """The footer of an iterable section: the section ends."""

    section_id: int


@dataclass(frozen=True, slots=True)
class DeviceState(Event):
    """All the device sections in a row, located, with the end of file and the vmdesc that follow them.

    Attributes:
        held: The same bytes as `raw`, to be patched in place; the sections' positions count from its start.
        sections: The sections in the order of the wire.
        vmdesc: The description that they were located by; None when the stream has none, and footers located them.
        early: True for sections before the iterable ones; no end of file follows.
        packaged: True for those of a postcopy migration, in its package; no end of file follows, and no vmdesc.
    """

    held: bytearray = field(repr=False)
    sections: "tuple[DeviceSection, ...]"
    vmdesc: "Vmdesc | None"
    early: bool
    packaged: bool = False


@dataclass(frozen=True, slots=True)
class LateVmdesc(Event):
    """A vmdesc that came after the device state was located without it; it agrees."""


@dataclass(frozen=True, slots=True)
class PostcopyData(Event):
    """A stretch of what follows the package: memory, and no device's state any more. It is not looked at."""


AnyEvent = (
    FileHeader
    | Configuration
    | Command
    | SectionBegin
    | IterableData
    | MappedPages
    | SectionFooter
    | DeviceState
    | LateVmdesc
    | PostcopyData
)
