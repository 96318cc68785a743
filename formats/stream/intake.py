"""What was fed to the parser and is in no event yet."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from formats.frame.event import Raw


class Intake:
    """The bytes at hand, and where in the stream they begin.

    Attributes:
        data: The bytes; a view of the caller's buffer, until `keep` is called.
        offset: Where they begin, in bytes from the stream's start. While a device state is held, where that begins.
        ended: Whether the source has ended the stream, so that no more bytes come.
    """

    __slots__ = ("data", "ended", "offset")

    def __init__(self) -> None:
        self.data: memoryview = memoryview(b"")
        self.offset = 0
        self.ended = False

    def feed(self, data: "Raw") -> None:
        """Add bytes; none say that the source has ended the stream."""
        if not len(data):
            self.ended = True
        elif len(self.data):
            self.data = memoryview(bytes(self.data) + data)
        else:
            self.data = memoryview(data)

    def take(self, size: int) -> tuple[int, memoryview]:
        """Consume `size` bytes: return their offset and the bytes, an event's first two fields."""
        offset, raw = self.offset, self.data[:size]
        self.data = self.data[size:]
        self.offset += size
        return offset, raw

    def keep(self) -> None:
        """Copy what is at hand: the caller is about to use its buffer again."""
        self.data = memoryview(bytes(self.data))
