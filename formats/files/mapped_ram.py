"""Mapped-ram (QEMU 9.0 and newer): RAM pages at fixed places of the file that a stream is saved to.

In the setup list of the `ram` section, each block's entry ends with a header, and after it the writer leaves a gap:

    bitmap   from the header's end on: a bit a page, in 64-bit words of the host's byte order; 1: the page was written
    padding  up to the next MiB of the file
    pages    as many bytes as the block has; pages that were never written are holes

The next entry, or what follows the list, goes on after the gap. Offsets in headers count from the start of the file,
which is not that of the stream where something stands before it (`migrate file:PATH,offset=N`, libvirt).

Source: QEMU `migration/ram.c` (`MappedRamHeader`, `mapped_ram_setup_ramblock`, `parse_ramblock_mapped_ram`) and
`docs/devel/migration/mapped-ram.rst`.
"""

from typing import Final

from construct import Int32ub, Int64ub, Struct

from formats.errors import MalformedStreamError, UnsupportedFeatureError

CAPABILITY: Final = "mapped-ram"
"""The capability's name in the configuration."""

HEADER: Final = Struct("version" / Int32ub, "page_size" / Int64ub, "bitmap_offset" / Int64ub, "pages_offset" / Int64ub)
HEADER_SIZE: Final[int] = HEADER.sizeof()
"""28 bytes."""

_VERSION: Final = 1
_WORD_BITS: Final = 64


class MappedLayout:
    """Where the gaps of one stream end.

    Attributes:
        stream_start: Where the stream begins in its file, in bytes, as the first header tells; None before it.
    """

    def __init__(self, page_size: int) -> None:
        self.stream_start: int | None = None
        self._page_size = page_size

    def gap(self, header: bytes, end: int, block_length: int) -> int:
        """Return how many bytes of the stream the gap after a header has.

        Args:
            header: Its 28 bytes.
            end: Where it ends in the stream.
            block_length: Bytes of the RAM block.

        Raises:
            UnsupportedFeatureError: The header is of a version that is not known.
            MalformedStreamError: It says what no QEMU writes, or what other headers of the stream contradict.
        """
        found = HEADER.parse(header)
        if found.version != _VERSION:
            raise UnsupportedFeatureError(
                f"a mapped-ram header of version {found.version}; {_VERSION} is known", offset=end, section="'ram'"
            )
        start = found.bitmap_offset - end
        if self.stream_start is None and start >= 0:
            self.stream_start = start
        bitmap_end = found.bitmap_offset + -(-block_length // self._page_size // _WORD_BITS) * (_WORD_BITS // 8)
        if (
            start != self.stream_start
            or found.page_size != self._page_size
            or found.pages_offset < bitmap_end
            or found.pages_offset % self._page_size
        ):
            raise MalformedStreamError(
                f"a mapped-ram header with pages of {found.page_size} bytes at {found.pages_offset:#x} of the file and "
                f"their bitmap at {found.bitmap_offset:#x}, which cannot be",
                offset=end,
                section="'ram'",
            )
        gap: int = found.pages_offset + block_length - found.bitmap_offset
        return gap
