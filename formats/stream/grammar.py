"""The states of the parser, and the records that each takes.

Source: QEMU `migration/savevm.c` (`qemu_savevm_state_header`, `qemu_loadvm_state_main`, `check_section_footer`).
"""

import enum
from typing import Final

from formats.frame.records import RecordType


class State(enum.Enum):
    """What the parser expects next."""

    FILE_HEADER = "the file header"
    FIRST_RECORD = "the configuration or the first section"
    RECORD = "a section or a command"
    ITERABLE_BODY = "the body of an iterable section"
    ITERABLE_FOOTER = "the footer of an iterable section"
    DEVICE_STATE = "the rest of the device state"
    PACKAGE = "the rest of the package"
    POSTCOPY = "memory, or the end"
    AFTER_EOF = "a late vmdesc or the end"
    DONE = "the end"
    ERROR = "nothing: an error was found"


ACCEPTS: Final[dict[State, frozenset[RecordType]]] = {
    State.FIRST_RECORD: frozenset(
        {RecordType.CONFIGURATION, RecordType.SECTION_START, RecordType.SECTION_FULL, RecordType.COMMAND}
    ),
    State.RECORD: frozenset(
        {
            RecordType.SECTION_START,
            RecordType.SECTION_PART,
            RecordType.SECTION_END,
            RecordType.SECTION_FULL,
            RecordType.COMMAND,
            RecordType.EOF,
        }
    ),
    State.ITERABLE_FOOTER: frozenset({RecordType.SECTION_FOOTER}),
    State.AFTER_EOF: frozenset({RecordType.VMDESCRIPTION}),
}
"""The record types that each state between records takes; any other is malformed."""


def accepted(byte: int, state: State) -> RecordType | None:
    """Return the type of the record that begins with a byte; None when no such record may come in that state."""
    try:
        record_type = RecordType(byte)
    except ValueError:
        return None
    return record_type if record_type in ACCEPTS[state] else None
