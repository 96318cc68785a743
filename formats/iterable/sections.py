"""The iterable sections of a stream: which have started, which go on, and where the one at hand ends."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.errors import MalformedStreamError, UnlocatableSectionError
from formats.iterable.kinds import reader_for
from formats.iterable.ram import RamReader

if TYPE_CHECKING:
    from formats.iterable.record_reader import IterableReader


DEFAULT_PAGE_BITS: Final = 12
"""Bits of a target page's size where the configuration does not say."""


@dataclass(slots=True)
class IterableSection:
    """An iterable section that has started.

    Attributes:
        section_id: What its parts, its end and their footers name it by.
        name: Its idstr.
        instance_id: Which of several of that idstr.
        version_id: Of its records' layout.
        reader: Knows its records.
        last_part: Whether its SECTION_END has begun.
    """

    section_id: int
    name: str
    instance_id: int
    version_id: int
    reader: "IterableReader"
    last_part: bool = False

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.name!r} instance {self.instance_id}"


class IterableSections:
    """The iterable sections of one stream, of which one at a time is at hand.

    Attributes:
        page_bits: Bits of a target page's size.
        capabilities: The capabilities that the configuration named.
        page_sizes: The sizes of all host pages, or-ed, as POSTCOPY_ADVISE said them; 0 when it did not.
        at_hand: The section whose body is read; None between sections.
    """

    def __init__(self) -> None:
        self.page_bits = DEFAULT_PAGE_BITS
        self.capabilities: tuple[str, ...] = ()
        self.page_sizes = 0
        self.at_hand: IterableSection | None = None
        self._started: dict[int, IterableSection] = {}

    @property
    def to_come(self) -> bool:
        """Whether there are parts still to come: none has started yet, or one has not come to its end."""
        return not self._started or not all(section.last_part for section in self._started.values())

    @property
    def ram(self) -> RamReader | None:
        """The reader of the `ram` sections; None before the first."""
        readers = (section.reader for section in self._started.values())
        return next((reader for reader in readers if isinstance(reader, RamReader)), None)

    @property
    def amid_part(self) -> bool:
        """Whether what was read ends in a section, and not in its last part."""
        return self.at_hand is not None and not self.at_hand.last_part

    @property
    def amid_small_records(self) -> bool:
        """Whether it ends there, between records."""
        return self.amid_part and self.at_hand is not None and not self.at_hand.reader.amid_payload

    @property
    def skippable(self) -> int:
        """How many of the next bytes need not be read; see `IterableReader.skippable`."""
        return 0 if self.at_hand is None else self.at_hand.reader.skippable

    def start(self, section_id: int, name: str, instance_id: int, version_id: int, offset: int) -> IterableSection:
        """Begin with a section; `offset` is where it begins in the stream.

        Raises:
            MalformedStreamError: It has started before.
            UnlocatableSectionError: Its records are not known.
        """
        if section_id in self._started:
            raise MalformedStreamError(f"section {section_id} starts twice", offset=offset)
        reader = reader_for(name, self.page_bits, self.capabilities, self.page_sizes)
        if reader is None:
            raise UnlocatableSectionError(
                "the records of this iterable section are not known, so its end cannot be told",
                offset=offset,
                section=f"{name!r} instance {instance_id}",
                advice="detach the device that it belongs to before the migration",
            )
        section = IterableSection(section_id, name, instance_id, version_id, reader)
        self.at_hand = self._started[section_id] = section
        return section

    def go_on(self, section_id: int, offset: int, *, last_part: bool) -> IterableSection:
        """Go on with a section, at `offset` in the stream.

        Raises:
            MalformedStreamError: It has not started.
        """
        section = self._started.get(section_id)
        if section is None:
            raise MalformedStreamError(f"section {section_id} goes on without a start", offset=offset)
        section.last_part |= last_part
        self.at_hand = section
        return section

    def read(self, data: memoryview, offset: int) -> tuple[int, bool]:
        """Read on in the body of the section at hand; see `IterableReader.read`."""
        assert self.at_hand is not None
        return self.at_hand.reader.read(data, offset)

    def skip(self, length: int) -> None:
        """Take note that so many bytes were not handed in; see `IterableReader.skip`."""
        assert self.at_hand is not None
        self.at_hand.reader.skip(length)

    def end(self, section_id: int, offset: int) -> None:
        """End the section at hand, by a footer at `offset` that names `section_id`.

        Raises:
            MalformedStreamError: It names another one.
        """
        assert self.at_hand is not None
        if section_id != self.at_hand.section_id:
            raise MalformedStreamError(
                f"its footer names section {section_id}, not {self.at_hand.section_id}",
                offset=offset,
                section=self.at_hand.label,
            )
        self.at_hand = None
