"""The iterable sections whose records are known, and the reader of each."""

from typing import TYPE_CHECKING, Final

from formats.files.mapped_ram import CAPABILITY as MAPPED_RAM
from formats.iterable.block import BlockReader
from formats.iterable.dirty_bitmap import DirtyBitmapReader
from formats.iterable.ram import RamReader
from formats.iterable.vfio import VfioReader

if TYPE_CHECKING:
    from collections.abc import Collection

    from formats.iterable.record_reader import IterableReader

_ITERABLE: Final = frozenset({RamReader.idstr, DirtyBitmapReader.idstr, BlockReader.idstr})


def is_iterable(idstr: str) -> bool:
    """Tell whether an idstr is that of an iterable section whose records are known."""
    return idstr in _ITERABLE or _is_vfio(idstr)


def _is_vfio(idstr: str) -> bool:
    return idstr.rpartition("/")[2] == VfioReader.idstr


def reader_for(
    idstr: str, page_bits: int, capabilities: "Collection[str]", page_sizes: int = 0
) -> "IterableReader | None":
    """Make the reader of an iterable section; None for one whose records are not known.

    Args:
        idstr: The section's idstr.
        page_bits: Bits of a target page's size.
        capabilities: The capabilities that the configuration named.
        page_sizes: The sizes of all host pages, or-ed, as POSTCOPY_ADVISE said them; 0 when it did not.
    """
    if idstr == RamReader.idstr:
        return RamReader(
            page_size=1 << page_bits,
            block_has_address="x-ignore-shared" in capabilities,
            page_sizes=page_sizes,
            mapped=MAPPED_RAM in capabilities,
        )
    if idstr == DirtyBitmapReader.idstr:
        return DirtyBitmapReader()
    if _is_vfio(idstr):
        return VfioReader()
    return BlockReader() if idstr == BlockReader.idstr else None
