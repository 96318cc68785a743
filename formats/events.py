"""What the parser tells of a stream. Every byte of the stream is in the `raw` of just one event, in order.

(Bytes that the caller chose not to feed are in none: `MappedPages` has their number.)

So output equals input where every event's `raw` is passed on; that is how byte identity is kept. `raw` may be a view of
the caller's own buffer: it is good until the next `feed`.
"""

import enum
from typing import TYPE_CHECKING, Final

import msgspec

from formats.records import CommandType, RecordType

if TYPE_CHECKING:
    from formats.device_state import DeviceSection
    from formats.vmdesc import Vmdesc

Raw = bytes | bytearray | memoryview


class NeedData(enum.Enum):
    """The type of `NEED_DATA`: no event until more bytes are fed."""

    NEED_DATA = enum.auto()


NEED_DATA = NeedData.NEED_DATA

_BYTES: Final = ("raw", "held")
"""Fields too long to be printed."""


class Event(msgspec.Struct, frozen=True):
    """A piece of the stream: where it begins, in bytes from the stream's start, and its bytes."""

    offset: int
    raw: Raw

    def __repr__(self) -> str:
        told = (name for name in self.__struct_fields__ if name not in _BYTES)
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in told)})"


class FileHeader(Event, frozen=True):
    """`QEVM` and the version of the stream format, 3."""

    version: int


class Configuration(Event, frozen=True):
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


class Command(Event, frozen=True):
    """COMMAND and its payload."""

    command: CommandType
    payload: bytes


class SectionBegin(Event, frozen=True):
    """SECTION_START, SECTION_PART or SECTION_END: an iterable section begins; PART and END repeat what START said."""

    type: RecordType
    section_id: int
    name: str
    instance_id: int
    version_id: int


class IterableData(Event, frozen=True):
    """A stretch of an iterable section's body; where it is cut means nothing."""


class MappedPages(Event, frozen=True):
    """A stretch of an iterable section's body that was stepped over, not fed; `raw` is empty.

    Attributes:
        length: Its length in bytes.
    """

    length: int


class SectionFooter(Event, frozen=True):
    """The footer of an iterable section: the section ends."""

    section_id: int


class DeviceState(Event, frozen=True):
    """All the device sections in a row, located, with the end of file and the vmdesc that follow them.

    Attributes:
        held: The same bytes as `raw`, to be patched in place; the sections' positions count from its start.
        sections: The sections in the order of the wire.
        vmdesc: The description that they were located by; None when the stream has none, and footers located them.
        early: True for sections before the iterable ones; no end of file follows.
        packaged: True for those of a postcopy migration, in its package; no end of file follows, and no vmdesc.
    """

    held: bytearray
    sections: "tuple[DeviceSection, ...]"
    vmdesc: "Vmdesc | None"
    early: bool
    packaged: bool = False


class LateVmdesc(Event, frozen=True):
    """A vmdesc that came after the device state was located without it; it agrees."""


class PostcopyData(Event, frozen=True):
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
