"""What the parser tells of a stream. Every byte of the stream is in the `raw` of just one event, in order.

(Bytes that the caller chose not to feed are in none: `MappedPages` and `TrailingBytes` have their number.)

So output equals input where every event's `raw` is passed on; that is how byte identity is kept. `raw` may be a view of
the caller's own buffer: it is good until the next `feed`.
"""

from formats.frame.event import Event
from formats.frame.records import CommandType, RecordType
from formats.vmstate.device_state import DeviceState


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


class LateVmdesc(Event, frozen=True):
    """A vmdesc that came after the device state was located without it; it agrees."""


class PostcopyData(Event, frozen=True):
    """A stretch of what follows the package: memory, and no device's state any more. It is not looked at."""


class TrailingBytes(Event, frozen=True):
    """A stretch of what follows the end of the stream in its file; it belongs to no guest.

    Attributes:
        length: Its length in bytes; where it was stepped over, not fed, `raw` is empty.
        zeroes: Whether it was stepped over and is known to be zero, as a hole is.
    """

    length: int
    zeroes: bool = False


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
    | TrailingBytes
)
