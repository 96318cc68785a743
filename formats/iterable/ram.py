"""The records of `ram` sections; runs of uniform pages are stepped over without a Python operation per page.

A record is be64 `page offset | flags`, then, unless CONTINUE is set, u8 length + the block's idstr, then what the flag
says. In a mapped-ram stream there are no page records: pages lie in gaps of the setup list (see
`formats.files.mapped_ram`).
Source: QEMU `migration/ram.c` (`save_page_header`, `ram_load_precopy`, `parse_ramblocks`).
"""

from struct import Struct
from typing import ClassVar, Final

from formats.files.mapped_ram import HEADER_SIZE, MappedLayout
from formats.iterable.record_reader import IterableReader, Record, counted

ZERO: Final = 0x002
MEM_SIZE: Final = 0x004
PAGE: Final = 0x008
EOS: Final = 0x010
CONTINUE: Final = 0x020
XBZRLE: Final = 0x040
HOOK: Final = 0x080
COMPRESS_PAGE: Final = 0x100
MULTIFD_FLUSH: Final = 0x200

_BE64: Final = Struct(">Q")
_XBZRLE: Final = Struct(">BH")
_BE32: Final = Struct(">I")

_ZERO_RECORD: Final = 8 + 1
_RUN_WINDOW: Final = 16
"""Records looked at first when a run begins; each uniform window is followed by one 16 times as large."""


class RamReader(IterableReader):
    """Steps through `ram` sections.

    Attributes:
        page_size: Bytes of a target page.
        blocks: The RAM blocks that the setup list named, with their lengths in bytes.
        full_pages: Pages that came whole.
        zero_pages: Pages that came as a zero record.
    """

    idstr: ClassVar[str] = "ram"

    def __init__(
        self, *, page_size: int = 4096, block_has_address: bool = False, page_sizes: int = 0, mapped: bool = False
    ) -> None:
        """Make a reader.

        Args:
            page_size: Bytes of a target page.
            block_has_address: Whether the setup list has addresses (capability x-ignore-shared).
            page_sizes: The sizes of all host pages, or-ed, where the setup list may have them (postcopy); else 0.
            mapped: whether the pages have fixed places in the file (capability mapped-ram).
        """
        super().__init__()
        self.page_size = page_size
        self.blocks: dict[str, int] = {}
        self.full_pages = 0
        self.zero_pages = 0
        self._block_has_address = block_has_address
        self._page_sizes = page_sizes
        self._page_size_may_follow = False
        self._mapped = MappedLayout(page_size) if mapped else None
        self._block_bytes_left = 0
        # The byte before a header's last one holds flags from 0x100 on, as far as page offsets leave it bits.
        self._no_high_flag = bytes(byte for byte in range(256) if not byte << 8 & page_size - 1)

    @property
    def skippable(self) -> int:
        """How many bytes of a mapped-ram gap are still to come."""
        return 0 if self._mapped is None else self._payload_left

    def skip_run(self, data: memoryview, position: int) -> int:
        """Step over the records at `position` that are all full pages, or all zero pages, of the block at hand."""
        if self._block_bytes_left or self._mapped is not None or len(data) - position < 8:
            return position
        flags = data[position + 7]
        if flags == PAGE | CONTINUE:
            run = self._run(data, position, 8 + self.page_size, flags)
            self.full_pages += run
            return position + run * (8 + self.page_size)
        if flags == ZERO | CONTINUE:
            run = self._run(data, position, _ZERO_RECORD, flags)
            self.zero_pages += run
            return position + run * _ZERO_RECORD
        return position

    def _run(self, data: memoryview, position: int, stride: int, flags: int) -> int:
        """Count the whole records of `stride` bytes from `position` on whose headers carry just `flags`."""
        most = (len(data) - position) // stride
        low_flags = bytes([flags])
        done, window = 0, _RUN_WINDOW
        while done < most:
            looked_at = min(window, most - done)
            first, end = position + done * stride, position + (done + looked_at) * stride
            high, low = _header_ends(data[first:end], stride)
            run = min(_leading(low, low_flags), _leading(high, self._no_high_flag))
            done += run
            if run < looked_at:
                break
            window *= 16
        return done

    def record(self, data: memoryview, position: int, offset: int) -> Record | None:
        """Read one record header; see `IterableReader.record`."""
        if self._block_bytes_left and not (self._page_size_may_follow and data[position] == 0):
            return self._block(data, position, offset)
        if len(data) - position < 8:
            return None
        (word,) = _BE64.unpack_from(data, position)
        if self._page_size_may_follow:
            # Whether a block's page size follows hangs on the source's own, which it does not say. What may stand in
            # its place is the length of an idstr, which is not 0, or a record, whose offset and flags are no page size.
            self._page_size_may_follow = False
            if self._block_bytes_left or (word & self._page_sizes and word == word & -word):
                return self._page_size(word, offset)
        flags = word & (self.page_size - 1)
        kind = flags & ~CONTINUE
        if kind == EOS:
            return Record(8, 0, True)
        if kind == MEM_SIZE:
            self._block_bytes_left = word & ~(self.page_size - 1)
            return Record(8, 0, False)
        if kind == MULTIFD_FLUSH:
            return Record(8, 0, False)
        return self._page_record(flags, data, position, offset)

    def _page_record(self, flags: int, data: memoryview, position: int, offset: int) -> Record | None:
        """Read the record of a page: be64, u8 length + idstr unless CONTINUE is set, then what the kind says."""
        kind = flags & ~CONTINUE
        if kind & HOOK:
            raise self.unsupported("a RAM record of an RDMA migration", offset, "migrate over tcp instead of rdma")
        if self._mapped is not None:
            raise self.malformed(f"RAM record with flags {flags:#x} in a mapped-ram stream, which has none", offset)
        if kind not in (ZERO, PAGE, XBZRLE, COMPRESS_PAGE):
            raise self.malformed(f"RAM record with flags {flags:#x}, which no QEMU sends", offset)
        end: int | None = position + 8
        if not flags & CONTINUE:
            end = counted(data, position + 8)
        return None if end is None else self._page(kind, data, position, end)

    def _page_size(self, size: int, offset: int) -> Record:
        if not size & self._page_sizes or size != size & -size:
            raise self.malformed(f"a RAM block with pages of {size:#x} bytes, which were not announced", offset)
        return Record(8, 0, False)

    def _page(self, kind: int, data: memoryview, position: int, end: int) -> Record | None:
        """Read what follows a page record's be64 and idstr, which end at `end`."""
        if kind == PAGE:
            self.full_pages += 1
            return Record(end - position, self.page_size, False)
        if kind == ZERO:
            self.zero_pages += 1
            return Record(end - position, 1, False)
        size = _XBZRLE if kind == XBZRLE else _BE32
        if len(data) - end < size.size:
            return None
        payload = size.unpack_from(data, end)[-1]
        return Record(end + size.size - position, payload, False)

    def _block(self, data: memoryview, position: int, offset: int) -> Record | None:
        """Read one entry of the setup list: u8 length + idstr, be64 length [, be64 address] [, mapped-ram header]."""
        name_end = counted(data, position)
        tail = 16 if self._block_has_address else 8
        tail += HEADER_SIZE if self._mapped is not None else 0
        if name_end is None or len(data) - name_end < tail:
            return None
        name = bytes(data[position + 1 : name_end]).decode("ascii", "backslashreplace")
        (length,) = _BE64.unpack_from(data, name_end)
        if not 0 < length <= self._block_bytes_left:
            raise self.malformed(
                f"RAM block {name!r} of {length:#x} bytes, where {self._block_bytes_left:#x} are left of the total",
                offset,
            )
        self.blocks[name] = length
        self._block_bytes_left -= length
        self._page_size_may_follow = bool(self._page_sizes)
        end = name_end + tail
        gap = 0
        if self._mapped is not None:
            gap = self._mapped.gap(bytes(data[end - HEADER_SIZE : end]), offset + end - position, length)
        return Record(end - position, gap, False)


def _header_ends(records: memoryview, stride: int) -> tuple[bytes, bytes]:
    """Return the last bytes but one, and the last ones, of the headers that stand `stride` bytes from one another."""
    if stride > _ZERO_RECORD:
        return records[6::stride].tobytes(), records[7::stride].tobytes()
    # From a copy it takes a tenth of the time; that of whole pages would take more than is won.
    copy = bytes(records)
    return copy[6::stride], copy[7::stride]


def _leading(data: bytes, allowed: bytes) -> int:
    """Return how many leading bytes of `data` are among the allowed ones."""
    others = data.translate(None, allowed)
    return data.index(others[0]) if others else len(data)
