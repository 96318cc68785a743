"""Reading along with a stream that passes whatever it holds, understood or not."""

from collections import deque
from typing import TYPE_CHECKING, Final

from formats.errors import FormatError, TruncatedStreamError
from formats.frame.event import NEED_DATA, Raw
from formats.stream.events import Command, Configuration, SectionBegin, TrailingBytes
from formats.stream.parser import StreamParser
from formats.stream.trailing import Trailing
from formats.vmstate.device_state import DeviceState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_MARKS: Final = 4096
"""Changes of section that are remembered; nobody asks for one that is more than a buffer back."""


class Follower:
    """Reads along with a stream that passes whatever it holds, as far as it can be understood.

    Attributes:
        length: Bytes of the stream so far.
        sections: How many sections, and parts of iterable ones, were found.
        begun: Whether the first section was reached; before it, the source says what it will do.
        problem: Why the stream could not be read on; what follows is not understood.
        machine: The machine type; None before it was read.
        trailing: What follows the end of the stream, in a file; it belongs to `length` all the same.
    """

    def __init__(self, *, take_trailing: bool = False) -> None:
        """Make it for one stream; `take_trailing` says that it is in a file, where more may follow its end."""
        self.trailing = Trailing()
        self._take_trailing = take_trailing
        self.length = 0
        self.sections = 0
        self.begun = False
        self.problem: FormatError | None = None
        self.machine: str | None = None
        self._parser = StreamParser(take_trailing=take_trailing)
        self._marks: deque[tuple[int, str]] = deque([(0, "the header")], maxlen=_MARKS)

    @property
    def complete(self) -> bool:
        """Whether the stream may end here, and was understood; the memory of a postcopy migration is not."""
        return self.problem is None and self._parser.complete and not self._parser.postcopy

    @property
    def settled(self) -> int:
        """How many bytes are known to be the stream's own, and no other's that follows; all that is not understood."""
        in_doubt = self._take_trailing and self.problem is None and (self._parser.holds or self.trailing.length)
        return self._parser.offset - self.trailing.length if in_doubt else self.length

    @property
    def postcopy_advised(self) -> bool:
        """Whether the source has announced that it may go over to postcopy."""
        return self._parser.postcopy_advised

    @property
    def cut(self) -> bool:
        """Whether the stream ended, and too early."""
        return isinstance(self.problem, TruncatedStreamError)

    @property
    def not_understood_from(self) -> int | None:
        """From which offset on the stream was not understood; None while it is."""
        return None if self.problem is None or self.cut else self.problem.offset

    @property
    def return_path(self) -> bool:
        """Whether the source opened a return path."""
        return self._parser.return_path

    @property
    def awaiting_vmdesc(self) -> bool:
        """Whether only the vmdesc seems to be missing; see `StreamParser.awaiting_vmdesc`."""
        return self.problem is None and self._parser.awaiting_vmdesc

    async def begin(self, opening: bytes, more: "Callable[[], Awaitable[memoryview]]") -> tuple[bytes, list[Command]]:
        """Read until the stream has shown that it is one.

        Args:
            opening: What came of it before.
            more: Gets what comes next; nothing at the end.

        Returns:
            All that was read, and the commands in it.

        Raises:
            FormatError: It begins as no migration stream does.
        """
        start, commands = bytearray(opening), self.follow(opening) if opening else []
        while not self._parser.offset:
            if self.problem is not None:
                raise self.problem
            piece = await more()
            start += piece
            commands += self.follow(piece)
        return bytes(start), commands

    def follow(self, data: Raw) -> list[Command]:
        """Take the next bytes, or none at the end; return the commands in them."""
        self.length += len(data)
        if self.problem is not None:
            return []
        self._parser.feed(data)
        return self._read()

    def vmdesc_overdue(self, *, last_word: bool) -> None:
        """Say that the vmdesc does not come; see `StreamParser.vmdesc_overdue`."""
        if self.problem is None:
            self._parser.vmdesc_overdue(last_word=last_word)
            self._read()

    def section_at(self, offset: int) -> str:
        """Return what stands at an offset, for people."""
        if offset >= self._parser.offset and self.problem is not None:
            return "what was not understood"
        if offset >= self._parser.offset and self.begun:
            return "the device state"
        return next((label for start, label in reversed(self._marks) if start <= offset), self._marks[0][1])

    def _read(self) -> list[Command]:
        commands: list[Command] = []
        try:
            while (event := self._parser.next_event()) is not NEED_DATA:
                match event:
                    case Command():
                        commands.append(event)
                    case TrailingBytes():
                        self.trailing.add(event)
                    case Configuration():
                        self.machine = event.machine
                    case SectionBegin():
                        self._mark(event.offset, f"section {event.name!r} instance {event.instance_id}")
                    case DeviceState():
                        for section in event.sections:
                            self._mark(event.offset + section.start, f"section {section.label}")
                    case _:
                        pass
        except FormatError as error:
            self.problem = error
            self._parser.unread()  # what it holds is of no use any more
        return commands

    def _mark(self, offset: int, label: str) -> None:
        self.begun = True
        self.sections += 1
        if self._marks[-1][1] != label:
            self._marks.append((offset, label))
