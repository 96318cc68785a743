"""construct schemas of the small, bounded records of the stream's frame; everything is big-endian.

Source: QEMU `migration/savevm.c` and `migration/savevm.h`.
"""

import enum
import io
from typing import TYPE_CHECKING, Any, Final

from construct import (
    Bytes,
    Const,
    ConstructError,
    ExprValidator,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    PascalString,
    Prefixed,
    PrefixedArray,
    StreamError,
    Struct,
    this,
)

from formats.errors import MalformedStreamError

if TYPE_CHECKING:
    from construct import Construct, Container

MAGIC: Final = b"QEVM"
FILE_VERSION: Final = 3

LONGEST_RECORD: Final = 5 + 0xFFFF
"""Bytes of the longest record read here: a command with the largest payload that its length can say."""


class RecordType(enum.IntEnum):
    """The byte that begins every record (`QEMU_VM_*`)."""

    EOF = 0x00
    SECTION_START = 0x01
    SECTION_PART = 0x02
    SECTION_END = 0x03
    SECTION_FULL = 0x04
    SUBSECTION = 0x05
    VMDESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    SECTION_FOOTER = 0x7E


class CommandType(enum.IntEnum):
    """What a COMMAND record says (`MIG_CMD_*`)."""

    INVALID = 0
    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11


FILE_HEADER: Final = Struct("magic" / Const(MAGIC), "version" / Int32ub)
HEADER_SIZE: Final = FILE_HEADER.sizeof()

_IDSTR = PascalString(Int8ub, "ascii")

SECTION_HEADER: Final = Struct(
    "type" / Int8ub, "section_id" / Int32ub, "name" / _IDSTR, "instance_id" / Int32ub, "version_id" / Int32ub
)
"""SECTION_START and SECTION_FULL: 14 to 269 bytes, then the section's body."""

SECTION_REFERENCE: Final = Struct("type" / Int8ub, "section_id" / Int32ub)
"""SECTION_PART, SECTION_END and SECTION_FOOTER: 5 bytes."""

COMMAND: Final = Struct("type" / Int8ub, "command" / Int16ub, "payload" / Prefixed(Int16ub, GreedyBytes))

_LENGTH = ExprValidator(Int32ub, lambda obj, _: obj <= 255)

CONFIGURATION: Final = Struct("type" / Int8ub, "length" / _LENGTH, "machine" / Bytes(this.length))
"""The fixed part of CONFIGURATION: the machine's name, of at most 255 bytes; subsections follow."""

SUBSECTION_HEADER: Final = Struct("type" / Const(b"\x05"), "name" / _IDSTR, "version_id" / Int32ub)

CONFIGURATION_SUBSECTIONS: Final[dict[str, "Construct[Any, Any]"]] = {
    "configuration/target-page-bits": Int32ub,
    "configuration/capabilities": PrefixedArray(_LENGTH, _IDSTR),
    "configuration/uuid": Bytes(16),
}

VMDESCRIPTION_HEADER: Final = Struct("type" / Int8ub, "length" / Int32ub)
"""5 bytes, then `length` bytes of JSON."""


def read(schema: "Construct[Container[Any], Any]", data: memoryview, offset: int) -> "tuple[Any, int] | None":
    """Read one record from the start of `data`.

    Args:
        schema: One of the schemas above.
        data: The bytes that are there so far.
        offset: Where `data` begins in the stream; used in errors only.

    Returns:
        What construct parsed and its length in bytes; None when `data` ends before the record does.

    Raises:
        MalformedStreamError: The bytes do not fit the schema.
    """
    stream = io.BytesIO(data[:LONGEST_RECORD])
    try:
        parsed = schema.parse_stream(stream)
    except StreamError:
        return None
    except (ConstructError, UnicodeDecodeError) as error:
        detail = str(error).splitlines()[-1]
        raise MalformedStreamError(f"a record that does not parse: {detail}", offset=offset) from error
    return parsed, stream.tell()
