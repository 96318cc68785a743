"""The parser alone: how much of a guest's memory it steps over in a second, fed as the proxy feeds it."""

from __future__ import annotations

import os
import time
from statistics import median

from formats.frame.event import NEED_DATA
from formats.stream.parser import StreamParser
from tests.streams import be64, short_head

_PAGE = 4096
_BUFFER = 1 << 20
_MEMORY = 1 << 26
_LEAD = b"\x02" + (1).to_bytes(4, "big")  # SECTION_PART of `ram`


def gibibytes_a_second(*, zero: bool, rounds: int) -> float:
    """Return the median speed in GiB of guest memory a second.

    Args:
        zero: zero pages, of 9 bytes each; or full ones, of random bytes.
        rounds: how often it is measured, each time over 64 MiB of stream.
    """
    page = b"\0" if zero else os.urandom(_PAGE)
    flags = 0x22 if zero else 0x28
    count = _MEMORY // (8 + len(page))
    # As fast as memory allows: one buffer with records of one block, over and over.
    records = b"".join(be64(index % 16 * _PAGE | flags) + page for index in range(_BUFFER // (8 + len(page))))
    buffer = memoryview(records)
    parser = StreamParser()
    parser.feed(short_head()[: -len(_LEAD) - 8 - 5] + _LEAD)
    while parser.next_event() is not NEED_DATA:
        pass
    speeds = []
    for _ in range(rounds):
        passed = 0
        started = time.perf_counter()
        while passed < count:
            parser.feed(buffer)
            while parser.next_event() is not NEED_DATA:
                pass
            passed += len(buffer) // (8 + len(page))
        speeds.append(passed * _PAGE / (time.perf_counter() - started) / (1 << 30))
    return median(speeds)
