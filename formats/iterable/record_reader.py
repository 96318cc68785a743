"""Where the body of an iterable section ends: one reader for each kind that QEMU sends.

SECTION_START, SECTION_PART and SECTION_END carry no length; only who knows their records can tell where they end.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Final, NamedTuple

from formats.errors import MalformedStreamError, UnsupportedFeatureError

_LONGEST_HEADER: Final = 1024
"""Bytes; no record header read here is longer (the longest has two counted strings of up to 256 bytes)."""


class Record(NamedTuple):
    """One record: its header's and its payload's length in bytes, and whether it is the last of its section."""

    header: int
    payload: int
    last: bool


class IterableReader(ABC):
    """Steps through section bodies, chunk by chunk, and finds where each ends.

    It keeps no byte but those of a header that a chunk cut in two. One reader serves all the sections of one id.
    """

    idstr: ClassVar[str]

    def __init__(self) -> None:
        self._cut_header = b""
        self._payload_left = 0

    def read(self, data: memoryview, offset: int) -> tuple[int, bool]:
        """Step on through `data`.

        Args:
            data: The next bytes of the section's body, and perhaps what comes after it.
            offset: Where `data` begins in the stream.

        Returns:
            How many bytes of `data` belong to the body, and whether the body ends there.

        Raises:
            MalformedStreamError: A record that QEMU would not send.
            UnsupportedFeatureError: A record of a capability that is refused.
        """
        position = 0
        if self._cut_header:
            cut = len(self._cut_header)
            joined = memoryview(self._cut_header + bytes(data[: _LONGEST_HEADER - cut]))
            record = self.record(joined, 0, offset - cut)
            if record is None:
                if len(joined) >= _LONGEST_HEADER:
                    raise self.malformed("a record header without end", offset - cut)
                self._cut_header = bytes(joined)
                return len(data), False
            self._cut_header = b""
            position = record.header - cut
            if record.last:
                return position, True
            self._payload_left = record.payload
        while True:
            if self._payload_left:
                step = min(self._payload_left, len(data) - position)
                position += step
                self._payload_left -= step
            position = self.skip_run(data, position)
            if position == len(data):
                return position, False
            record = self.record(data, position, offset + position)
            if record is None:
                self._cut_header = bytes(data[position:])
                return len(data), False
            position += record.header
            if record.last:
                return position, True
            self._payload_left = record.payload

    @property
    def amid_payload(self) -> bool:
        """Whether what was read last ends within a record's payload."""
        return bool(self._payload_left)

    @property
    def skippable(self) -> int:
        """How many of the next bytes are a payload that only has to keep its place in the file."""
        return 0

    def skip(self, length: int) -> None:
        """Take note that the next `length` bytes, at most those that are skippable, are not handed in."""
        self._payload_left -= length

    def skip_run(self, data: memoryview, position: int) -> int:
        """Step over as many whole, uniform records as can be told apart cheaply; the default steps over none."""
        return position

    @abstractmethod
    def record(self, data: memoryview, position: int, offset: int) -> Record | None:
        """Read the record header at `data[position:]`, `offset` in the stream; None when it is cut off."""

    def malformed(self, message: str, offset: int) -> MalformedStreamError:
        """Make the error for a record at `offset` that cannot be."""
        return MalformedStreamError(message, offset=offset, section=f"'{self.idstr}'")

    def unsupported(self, message: str, offset: int, advice: str) -> UnsupportedFeatureError:
        """Make the error for a record at `offset` that is refused by name."""
        return UnsupportedFeatureError(message, offset=offset, section=f"'{self.idstr}'", advice=advice)


def counted(data: memoryview, position: int) -> int | None:
    """Return where the counted string (u8 length, bytes) at `position` ends; None when it is cut off."""
    if position >= len(data):
        return None
    end = position + 1 + data[position]
    return end if end <= len(data) else None
