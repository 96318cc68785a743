"""Mapped-ram: streams whose pages are stepped over, or fed, in any mixture and any chunks."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import FormatError, MalformedStreamError, TruncatedStreamError, UnsupportedFeatureError
from formats.files.mapped_ram import HEADER_SIZE, MappedLayout
from formats.frame.event import NEED_DATA
from formats.iterable.ram import RamReader
from formats.stream.parser import StreamParser
from formats.vmstate.device_state import DeviceState
from tests.streams import (
    FILE_HEADER,
    RAM_EOS,
    RAM_ID,
    SHORT_BLOCKS,
    Parts,
    Reading,
    be64,
    configuration,
    mapped_head,
    mapped_ram_setup,
    pieces_of,
    ram_page,
    ram_zero,
    section_header,
    small_sections,
)

if TYPE_CHECKING:
    from collections.abc import Callable

STARTS = [0, 12345]
HEAD = FILE_HEADER + configuration(capabilities=["mapped-ram"]) + section_header(1, RAM_ID, "ram", 0, 4)


def mapped(start: int = 0, *, align: int = 4096) -> bytes:
    """Return a whole mapped-ram stream."""
    return Parts(mapped_head(start=start, align=align), small_sections()).stream()


def header(version: int = 1, page_size: int = 4096, bitmap: int = 0x1000, pages: int = 0x100000) -> bytes:
    return struct.pack(">IQQQ", version, page_size, bitmap, pages)


# --- whole streams


def read_with_skips(stream: bytes, sizes: Callable[[], int], skips: Callable[[int], int]) -> tuple[StreamParser, int]:
    """Read a stream, stepping over as many of the bytes that may be as `skips` says; return how many were fed.

    Every byte must be in one event: in its `raw`, or counted.
    """
    parser, position, fed, passed = StreamParser(take_mapped_ram=True), 0, 0, 0
    while position <= len(stream):
        piece = stream[position : position + sizes()]
        parser.feed(piece)
        position, fed = position + len(piece), fed + len(piece)
        while (event := parser.next_event()) is not NEED_DATA:
            assert event.offset == passed
            assert stream.startswith(bytes(event.raw), passed)
            passed += len(event.raw)
            if isinstance(event, DeviceState):
                assert [section.name for section in event.sections] == ["timer", "cpu", "pl011", "globalstate"]
        if not piece:
            break
        if parser.skippable and (length := skips(parser.skippable)):
            skipped = parser.skip(length)
            assert (skipped.offset, bytes(skipped.raw), skipped.length) == (passed, b"", length)
            passed += length
            position += length
    assert parser.complete
    assert parser.offset == passed == len(stream)
    assert parser.ram is not None
    assert parser.ram.blocks == SHORT_BLOCKS
    return parser, fed


@pytest.mark.parametrize("start", STARTS)
@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 1 << 32))
def test_any_chunks_with_any_skips(start: int, seed: int) -> None:
    chance = random.Random(seed)
    sizes = chance.choice([(1, 100), (7, 5000), (5000, 20_000, 1 << 20)])
    read_with_skips(
        mapped(start),
        lambda: chance.choice(sizes),
        lambda most: chance.choice([0, 1, most, chance.randint(1, most)]),
    )


@pytest.mark.parametrize(("size", "align"), [(1, 4096), (13, 4096), (4096, 1 << 20), (1 << 22, 1 << 20)])
def test_fed_throughout_it_is_passed_on_as_it_is(size: int, align: int) -> None:
    stream = mapped(align=align)
    reading = Reading(take_mapped_ram=True)
    reading.feed_all(pieces_of(stream, size))
    assert reading.raw == stream
    assert reading.parser.complete


def test_all_that_can_be_stepped_over_is() -> None:
    """Byte by byte: nothing but headers, footers and devices is ever asked for."""
    stream = mapped(align=1 << 20)
    _, fed = read_with_skips(stream, lambda: 1, lambda most: most)
    assert len(stream) > 2 << 20
    assert fed == len(HEAD) + len(be64(0)) + 2 * HEADER_SIZE + sum(1 + len(name) + 8 for name in SHORT_BLOCKS) + (
        len(stream) - stream.rindex(RAM_EOS + b"\x7e\0\0\0\1\x02")
    )


def test_nothing_can_be_stepped_over_while_there_is_something_to_read() -> None:
    parser = StreamParser(take_mapped_ram=True)
    parser.feed(mapped()[:-1])
    assert parser.skippable == 0
    while parser.next_event() and parser.ram is None:
        assert parser.skippable == 0


@pytest.mark.parametrize("align", [4096, 1 << 20])
def test_with_addresses(align: int) -> None:
    reader = RamReader(block_has_address=True, mapped=True)
    body = mapped_ram_setup(SHORT_BLOCKS, 100, align=align, addresses=[0x40000000, 0]) + RAM_EOS
    assert reader.read(memoryview(body + b"more"), 100) == (len(body), True)
    assert reader.blocks == SHORT_BLOCKS


# --- what it does not take


def test_a_stream_that_is_in_no_file_is_refused() -> None:
    reading = Reading()
    with pytest.raises(UnsupportedFeatureError, match="mapped-ram is not supported; it is for files"):
        reading.feed(mapped())


@pytest.mark.parametrize("cut", [1, 100, 0x9000])
@pytest.mark.parametrize("skip", [False, True])
def test_cut_within_pages(cut: int, skip: bool) -> None:
    head = mapped_head()
    pages = head.index(RAM_EOS + b"\x7e")
    reading = Reading(take_mapped_ram=True)
    reading.feed(head[: pages + cut])
    assert reading.parser.skippable
    if skip:
        reading.parser.skip(1)
    with pytest.raises(TruncatedStreamError) as caught:
        reading.feed(b"")
    assert caught.value.offset == pages + cut + skip


@pytest.mark.parametrize(
    "record", [ram_page(0, bytes(4096), "mach-virt.ram"), ram_zero(0, "mach-virt.ram"), ram_page(0, bytes(4096))]
)
def test_page_records_have_no_place_in_it(record: bytes) -> None:
    reader = RamReader(mapped=True)
    reader.read(memoryview(mapped_ram_setup(SHORT_BLOCKS, 0) + RAM_EOS), 0)
    with pytest.raises(MalformedStreamError, match="mapped-ram stream, which has none"):
        reader.read(memoryview(record * 20), 0x20000)


@pytest.mark.parametrize(
    ("broken", "kind", "match"),
    [
        (header(version=2), UnsupportedFeatureError, "version 2; 1 is known"),
        (header(version=0), UnsupportedFeatureError, "version 0"),
        (header(page_size=65536), MalformedStreamError, "pages of 65536 bytes"),
        (header(bitmap=0xFFF), MalformedStreamError, "bitmap at 0xfff"),
        (header(bitmap=0), MalformedStreamError, "bitmap at 0x0"),
        (header(pages=0x1000), MalformedStreamError, "at 0x1000 of the file"),
        (header(pages=0), MalformedStreamError, "at 0x0 of the file"),
        (header(pages=0x100001), MalformedStreamError, "0x100001"),
    ],
)
def test_headers_that_cannot_be(broken: bytes, kind: type[FormatError], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        MappedLayout(4096).gap(broken, 0x1000, 0x40000)
    assert caught.value.section == "'ram'"


def test_the_gap() -> None:
    """64 pages have a bitmap of one word, 65 of two."""
    layout = MappedLayout(4096)
    assert layout.gap(header(pages=0x2000), 0x800, 0x40000) == 0x41000
    assert layout.stream_start == 0x800
    assert layout.gap(header(bitmap=0x1FF8, pages=0x2000), 0x17F8, 0x40000) == 0x40008
    with pytest.raises(MalformedStreamError):
        layout.gap(header(bitmap=0x1FF8, pages=0x2000), 0x17F8, 0x41000)


def test_headers_that_contradict_each_other() -> None:
    layout = MappedLayout(4096)
    layout.gap(header(), 0x800, 0x40000)
    with pytest.raises(MalformedStreamError, match="cannot be"):
        layout.gap(header(bitmap=0x200000, pages=0x300000), 0x200000, 0x40000)
