"""The postcopy-preempt channel: pages that the destination asked for, as records of a RAM section without its header.

It says nothing of what it is. Only where a paused migration is recovered may its first page come at once, for one that
was asked for before. Source: QEMU `migration/ram.c` (`ram_save_host_page_urgent`, `save_page_header`).
"""

from typing import Final

from formats.iterable.ram import CONTINUE, PAGE, ZERO

_WORD: Final = 8
_FLAGS: Final = 0xFFF
"""What a page's offset leaves for flags, where pages have 4 KiB at least."""


def may_be_preempt(opening: bytes | memoryview) -> bool:
    """Tell whether a connection that begins so may be a preempt channel: with a 64-bit big-endian offset and flags."""
    if len(opening) < _WORD:
        return False
    flags = int.from_bytes(opening[:_WORD], "big") & _FLAGS
    return flags & ~CONTINUE in (PAGE, ZERO)
