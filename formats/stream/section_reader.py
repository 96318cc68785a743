"""Reading the headers and footers of iterable sections; what is between them is stepped over by `IterableSections`."""

from typing import TYPE_CHECKING

from formats.frame.records import SECTION_HEADER, SECTION_REFERENCE, RecordType, read
from formats.stream.events import SectionBegin, SectionFooter

if TYPE_CHECKING:
    from formats.iterable.sections import IterableSections
    from formats.stream.intake import Intake


class SectionReader:
    """Reads what the iterable sections of a stream bring. What a method returns as None is not all at hand.

    Each raises MalformedStreamError or UnlocatableSectionError where the bytes are no such record, or the section is
    not one that may come; see `IterableSections`.
    """

    def __init__(self, intake: "Intake", sections: "IterableSections") -> None:
        self._in = intake
        self._sections = sections

    def begin(self, record_type: RecordType) -> SectionBegin | None:
        """Read SECTION_START, SECTION_PART or SECTION_END: be32 section id, and for START what the section is."""
        start = record_type is RecordType.SECTION_START
        found = read(SECTION_HEADER if start else SECTION_REFERENCE, self._in.data, self._in.offset)
        if found is None:
            return None
        header, size = found
        if start:
            section = self._sections.start(
                header.section_id, header.name, header.instance_id, header.version_id, self._in.offset
            )
        else:
            last_part = record_type is RecordType.SECTION_END
            section = self._sections.go_on(header.section_id, self._in.offset, last_part=last_part)
        return SectionBegin(
            *self._in.take(size),
            type=record_type,
            section_id=section.section_id,
            name=section.name,
            instance_id=section.instance_id,
            version_id=section.version_id,
        )

    def footer(self) -> SectionFooter | None:
        """Read SECTION_FOOTER, be32 section id."""
        found = read(SECTION_REFERENCE, self._in.data, self._in.offset)
        if found is None:
            return None
        reference, size = found
        self._sections.end(reference.section_id, self._in.offset)
        return SectionFooter(*self._in.take(size), section_id=reference.section_id)
