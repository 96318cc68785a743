"""The records of `dirty-bitmap` sections.

Source: QEMU `migration/block-dirty-bitmap.c` (the header comment, `send_bitmap_header`, `send_bitmap_bits`).
"""

from struct import Struct
from typing import ClassVar, Final

from formats.iterable.record_reader import IterableReader, Record, counted

EOS: Final = 0x01
ZEROES: Final = 0x02
BITMAP_NAME: Final = 0x04
DEVICE_NAME: Final = 0x08
START: Final = 0x10
COMPLETE: Final = 0x20
BITS: Final = 0x40

_GRANULARITY_AND_FLAGS: Final = 4 + 1
_SECTOR_AND_COUNT: Final = 8 + 4
_BE64: Final = Struct(">Q")


class DirtyBitmapReader(IterableReader):
    """Steps through `dirty-bitmap` sections: u8 flags, [u8-counted node alias], [u8-counted bitmap alias], payload."""

    idstr: ClassVar[str] = "dirty-bitmap"

    def record(self, data: memoryview, position: int, offset: int) -> Record | None:
        """Read one record header; see `IterableReader.record`."""
        flags = data[position]
        if flags == EOS:
            return Record(1, 0, True)
        kind = flags & ~(ZEROES | BITMAP_NAME | DEVICE_NAME)
        if kind not in (START, COMPLETE, BITS):
            raise self.malformed(f"bitmap record with flags {flags:#x}, which no QEMU sends", offset)
        end: int | None = position + 1
        for named in (DEVICE_NAME, BITMAP_NAME):
            if flags & named and end is not None:
                end = counted(data, end)
        if end is None:
            return None
        payload = 0
        if kind == START:
            end += _GRANULARITY_AND_FLAGS
        elif kind == BITS:
            end += _SECTOR_AND_COUNT
            if not flags & ZEROES:
                if len(data) - end < 8:
                    return None
                (payload,) = _BE64.unpack_from(data, end)
                end += 8
        return Record(end - position, payload, False) if end <= len(data) else None
