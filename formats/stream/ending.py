"""After the end of a stream: nothing comes on a connection, and in a file whatever else the file holds."""

from typing import TYPE_CHECKING, Final

from formats.frame.event import NEED_DATA, NeedData
from formats.stream.broken import too_long, unsupported
from formats.stream.events import TrailingBytes
from formats.stream.refusals import COLO, COLO_CHECKPOINT

if TYPE_CHECKING:
    from formats.stream.intake import Intake

ANY_LENGTH: Final = 1 << 63
"""Bytes; more than any file has."""


class Ending:
    """What comes after the end of one stream.

    Attributes:
        skippable: How many of the next bytes need not be fed; 0 before the first few were.
    """

    def __init__(self, intake: "Intake", *, take_trailing: bool) -> None:
        self._in = intake
        self._take_trailing = take_trailing
        self.skippable = 0

    def next_event(self) -> TrailingBytes | NeedData:
        """Return what follows.

        Raises:
            MalformedStreamError: Something does, and it may not.
            UnsupportedFeatureError: It is COLO's first checkpoint.
        """
        if not len(self._in.data):
            return NEED_DATA
        if not self.skippable and self._in.data[: len(COLO_CHECKPOINT)] == COLO_CHECKPOINT:
            raise unsupported(*COLO, self._in.offset)
        if not self._take_trailing:
            raise too_long(self._in.offset)
        self.skippable = ANY_LENGTH
        length = len(self._in.data)
        return TrailingBytes(*self._in.take(length), length=length)

    def skip(self, length: int, *, zeroes: bool) -> TrailingBytes:
        """Step over bytes that are not fed; see `StreamParser.skip`."""
        offset = self._in.offset
        self._in.offset += length
        return TrailingBytes(offset, b"", length=length, zeroes=zeroes)
