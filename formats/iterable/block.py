"""The records of `block` sections (storage migration inside the stream; QEMU until 9.0).

Source: QEMU 7.2 `migration/block.c` (`blk_send`, `block_load`).
"""

from struct import Struct
from typing import ClassVar, Final

from formats.iterable.record_reader import IterableReader, Record, counted

DEVICE_BLOCK: Final = 0x01
EOS: Final = 0x02
PROGRESS: Final = 0x04
ZERO_BLOCK: Final = 0x08

BLOCK_SIZE: Final = 1 << 20
_FLAGS_MASK: Final = (1 << 9) - 1
_BE64: Final = Struct(">Q")


class BlockReader(IterableReader):
    """Steps through `block` sections: be64 `sector << 9 | flags`, [u8-counted device name, 1 MiB unless it is zero]."""

    idstr: ClassVar[str] = "block"

    def record(self, data: memoryview, position: int, offset: int) -> Record | None:
        """Read one record header; see `IterableReader.record`."""
        if len(data) - position < 8:
            return None
        flags = _BE64.unpack_from(data, position)[0] & _FLAGS_MASK
        if flags in (DEVICE_BLOCK, DEVICE_BLOCK | ZERO_BLOCK):
            end = counted(data, position + 8)
            return None if end is None else Record(end - position, 0 if flags & ZERO_BLOCK else BLOCK_SIZE, False)
        if flags not in (PROGRESS, EOS):
            raise self.malformed(f"block record with flags {flags:#x}, which no QEMU sends", offset)
        return Record(8, 0, flags == EOS)
