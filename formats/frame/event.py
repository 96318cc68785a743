"""What every event of a stream is: where it begins, and its bytes."""

import enum
from typing import Final

import msgspec

Raw = bytes | bytearray | memoryview

_BYTES: Final = ("raw", "held")


class NeedData(enum.Enum):
    """The type of `NEED_DATA`: no event until more bytes are fed."""

    NEED_DATA = enum.auto()


NEED_DATA = NeedData.NEED_DATA


class Event(msgspec.Struct, frozen=True):
    """A piece of the stream: where it begins, in bytes from the stream's start, and its bytes."""

    offset: int
    raw: Raw

    def __repr__(self) -> str:
        """Say what it is, without the bytes, which may be many."""
        told = {name: getattr(self, name) for name in self.__struct_fields__ if name not in _BYTES}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in told.items())})"
