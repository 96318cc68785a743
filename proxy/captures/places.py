"""Where in a file the bytes of a stream lie."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from proxy.captures.positioned_io import read_at

if TYPE_CHECKING:
    from collections.abc import Iterator


class Places(Protocol):
    """Knows where each byte of a stream lies in its file. Offsets count from the stream's start, in bytes."""

    def runs(self, offset: int, length: int) -> "Iterator[tuple[int, int]]":
        """Yield, in the stream's order, where a stretch of it lies: places in the file, and how many bytes there.

        Raises:
            ProxyError: It cannot be written there.
        """

    def read(self, file: int, offset: int, length: int) -> bytes:
        """Return a stretch of the stream as the file has it now; fewer bytes where the file ends."""

    def last_to(self, end: int, size: int) -> bool:
        """Tell whether the stream, which ends at `end`, is the last in a file of `size` bytes."""


@dataclass(frozen=True, slots=True)
class InOneRun:
    """A stream that lies in its file as it is.

    Attributes:
        start: Where it begins.
    """

    start: int

    def runs(self, offset: int, length: int) -> "Iterator[tuple[int, int]]":
        """See `Places.runs`."""
        yield self.start + offset, length

    def read(self, file: int, offset: int, length: int) -> bytes:
        """See `Places.read`."""
        return read_at(file, self.start + offset, length)

    def last_to(self, end: int, size: int) -> bool:
        """See `Places.last_to`."""
        return self.start + end == size
