"""What every event of a stream is: where it begins, and its bytes."""

import enum
from dataclasses import dataclass, field

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
