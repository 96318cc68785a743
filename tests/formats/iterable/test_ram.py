"""RAM records: the runs must step as a naive reader steps, whatever the chunks."""

import random
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import FormatError, MalformedStreamError, UnsupportedFeatureError
from formats.iterable.ram import RamReader
from tests.streams import RAM_EOS, be32, be64, counted, cut, ram_page, ram_setup, ram_zero

ZERO, MEM_SIZE, PAGE, EOS, CONTINUE, XBZRLE, HOOK, COMPRESS_PAGE, MULTIFD_FLUSH = (
    0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x100, 0x200,
)  # fmt: skip


@dataclass
class Naive:
    """What a reader that looks at every record finds."""

    length: int = 0
    full_pages: int = 0
    zero_pages: int = 0
    blocks: dict[str, int] = field(default_factory=dict)
    error: type[FormatError] | None = None
    error_at: int = 0


def read_naively(data: bytes, page_size: int = 4096, *, addresses: bool = False) -> Naive:
    """Read one section's body record by record, as `ram_load_precopy` does."""
    found = Naive()
    position = 0
    while True:
        (word,) = struct.unpack_from(">Q", data, position)
        flags = word & (page_size - 1)
        kind = flags & ~CONTINUE
        start = position
        position += 8
        if kind == EOS:
            found.length = position
            return found
        if kind == MEM_SIZE:
            left = word - flags
            while left:
                entry = position
                name = data[position + 1 : position + 1 + data[position]].decode("ascii")
                position += 1 + data[position]
                (length,) = struct.unpack_from(">Q", data, position)
                position += 16 if addresses else 8
                if not 0 < length <= left:
                    found.error, found.error_at = MalformedStreamError, entry
                    return found
                found.blocks[name] = length
                left -= length
            continue
        if kind == MULTIFD_FLUSH:
            continue
        if kind & HOOK:
            found.error, found.error_at = UnsupportedFeatureError, start
            return found
        if kind not in (ZERO, PAGE, XBZRLE, COMPRESS_PAGE):
            found.error, found.error_at = MalformedStreamError, start
            return found
        if not flags & CONTINUE:
            position += 1 + data[position]
        if kind == ZERO:
            position += 1
            found.zero_pages += 1
        elif kind == PAGE:
            position += page_size
            found.full_pages += 1
        elif kind == XBZRLE:
            position += 3 + struct.unpack_from(">BH", data, position)[1]
        else:
            position += 4 + struct.unpack_from(">I", data, position)[0]


def step(pieces: Iterable[bytes], page_size: int = 4096, *, addresses: bool = False) -> tuple[Naive, RamReader]:
    """Read one section's body with the reader under test, from buffers that are used again."""
    reader = RamReader(page_size=page_size, block_has_address=addresses)
    found = Naive()
    offset = 0
    try:
        for piece in pieces:
            buffer = bytearray(piece)
            length, ended = reader.read(memoryview(buffer), offset)
            assert 0 < length <= len(piece)
            assert ended or length == len(piece)
            buffer[:] = b"\x10" * len(buffer)
            offset += length
            if ended:
                found.length = offset
                break
    except FormatError as error:
        found.error, found.error_at = type(error), error.offset
    found.full_pages, found.zero_pages, found.blocks = reader.full_pages, reader.zero_pages, reader.blocks
    return found, reader


def agree(data: bytes, cuts: Iterable[int] = (), page_size: int = 4096, *, addresses: bool = False) -> Naive:
    expected = read_naively(data, page_size, addresses=addresses)
    found, _ = step(cut(data, cuts), page_size, addresses=addresses)
    assert found == expected
    return found


# --- random records, all the same shape to draw fast


def random_record(rng: random.Random, page_size: int) -> bytes:
    """Return a run or a single record; page offsets have all the high bits, payloads look like headers."""
    kind = rng.choice([ZERO, ZERO, PAGE, PAGE, XBZRLE, COMPRESS_PAGE, MULTIFD_FLUSH])
    goes_on = rng.random() < 0.8
    name = b"" if goes_on else counted("b" * rng.choice([0, 1, 7, 8, 9, 255]))
    flags = kind | (CONTINUE if goes_on else 0)

    def head() -> bytes:
        return be64(rng.getrandbits(64) & ~(page_size - 1) | flags)

    def page(size: int) -> bytes:
        pattern = rng.choice([b"\0", b"\x7e", head(), head()[::-1], RAM_EOS, b"\x22", rng.randbytes(9)])
        return (pattern * (size // len(pattern) + 1))[:size]

    if kind == MULTIFD_FLUSH:
        return be64(MULTIFD_FLUSH)
    if kind == XBZRLE:
        size = rng.choice([0, 1, 30, 600, 0xFFFF])
        return head() + name + b"\x01" + struct.pack(">H", size) + page(size)
    if kind == COMPRESS_PAGE:
        size = rng.choice([0, 1, 30, 600, 5000])
        return head() + name + be32(size) + page(size)
    times = rng.choice([1, 1, 2, 15, 16, 17, 40]) if goes_on else 1
    if kind == PAGE:
        return b"".join(head() + name + page(page_size) for _ in range(min(times, 20)))
    if times == 40:
        times = rng.choice([40, 272, 273, 5000])
    return b"".join(head() + name + bytes([rng.choice([0, 8, 0x22, 0x28, 0xFF])]) for _ in range(times))


def random_body(rng: random.Random, page_size: int = 4096) -> bytes:
    return b"".join(random_record(rng, page_size) for _ in range(rng.randint(0, 8))) + RAM_EOS


def random_cuts(rng: random.Random, data: bytes) -> list[int]:
    """Return cuts anywhere, in clusters, and about the last bytes."""
    cuts = [rng.randrange(len(data)) for _ in range(rng.choice([0, 1, 5, 40]))]
    for _ in range(rng.randint(0, 3)):
        start = rng.randrange(len(data))
        cuts += range(start, start + rng.randint(1, 40), rng.choice([1, 1, 2, 3, 8]))
    cuts += [len(data) - rng.randint(0, 12)]
    return cuts


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32), trailing=st.sampled_from([b"", b"\x7e", RAM_EOS, ram_zero(0)]))
def test_runs_step_as_a_naive_reader_does(seed: int, trailing: bytes) -> None:
    rng = random.Random(seed)
    data = random_body(rng)
    found = agree(data + trailing, random_cuts(rng, data))
    assert found.length == len(data)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_broken_records_are_found_at_the_same_place_in_any_chunks(seed: int) -> None:
    rng = random.Random(seed)
    bad = rng.choice([0x00, 0x01, 0x03, 0x0A, 0x400, 0x800, 0x208, 0x42, 0x80, 0x88, 0x34])
    broken = be64(rng.getrandbits(64) & ~0xFFF | bad)
    before = random_body(rng)[:-8]
    if rng.random() < 0.5:
        before += ram_zero(0x1000) * rng.randint(1, 300)
    data = before + broken + ram_zero(0) * 20 + RAM_EOS
    found = agree(data, random_cuts(rng, data))
    assert (found.error, found.error_at) == (
        UnsupportedFeatureError if bad & HOOK else MalformedStreamError,
        len(before),
    )


@pytest.mark.parametrize("bits", [10, 11, 12, 13, 14, 16])
def test_other_page_sizes(bits: int) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        data = random_body(rng, 1 << bits)
        assert agree(data, random_cuts(rng, data), 1 << bits).length == len(data)


@pytest.mark.parametrize("chunk", [13, 1 << 20], ids=["cut", "whole"])
@pytest.mark.parametrize("flags", [PAGE | CONTINUE, ZERO | CONTINUE], ids=["pages", "zeroes"])
@pytest.mark.parametrize(("bits", "bad"), [(12, 0x100), (12, 0x200), (12, 0x800), (14, 0x1000), (16, 0x8000)])
def test_a_flag_too_many_amid_a_run_is_seen(bits: int, bad: int, flags: int, chunk: int) -> None:
    """All bits below the page size are flags, so larger pages have more of them than the run scanner's mask."""
    size = 1 << bits
    payload = bytes(size if flags & PAGE else 1)
    good = be64(size | flags) + payload
    data = good * 20 + be64(size | flags | bad) + payload + good * 20 + RAM_EOS
    found = agree(data, range(0, len(data), chunk), size)
    assert (found.error, found.error_at) == (MalformedStreamError, 20 * len(good))


@pytest.mark.parametrize("kind", [ZERO, PAGE, XBZRLE, COMPRESS_PAGE, MULTIFD_FLUSH, EOS])
@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("offset", [0, 0xFFFFFFFFFFFFF000, 0x5A5A5A5A5A5A5000])
def test_each_kind_of_record(kind: int, goes_on: bool, offset: int) -> None:
    head = be64(offset | kind | (CONTINUE if goes_on else 0))
    head += b"" if goes_on or kind in (MULTIFD_FLUSH, EOS) else counted("mach-virt.ram")
    tail = {
        ZERO: b"\0",
        PAGE: b"\x10" * 4096,
        XBZRLE: b"\x01\x00\x05" + b"\x10" * 5,
        COMPRESS_PAGE: be32(300) + b"\x10" * 300,
    }.get(kind, b"")
    data = head + tail + (b"" if kind == EOS else RAM_EOS)
    for cuts in ((), range(len(data))):
        assert agree(data + b"trailing", cuts).length == len(data)


def test_every_single_flag_word() -> None:
    """Every value of the twelve flag bits: taken or refused as a naive reader does."""
    for flags in range(0x1000):
        if flags & ~CONTINUE == MEM_SIZE:
            continue  # its own test
        data = be64(0x123456789000 | flags) + bytes(8192) + RAM_EOS
        agree(data)


# --- the setup list


@pytest.mark.parametrize("addresses", [False, True])
@pytest.mark.parametrize("size", [1, 3, 9, 10_000])
def test_the_setup_list(addresses: bool, size: int) -> None:
    blocks = {"mach-virt.ram": 1 << 40, "virt.flash0": 0x4000000, "x" * 255: 0x1000, "/rom@etc/acpi/tables": 0x20000}
    forged_addresses = [0x10 << 56 | 0x10, 0, 2**64 - 1, 0x7E00000000000000]
    setup = ram_setup(blocks, addresses=forged_addresses if addresses else None)
    data = setup + RAM_EOS
    found = agree(data + b"\x7e", range(0, len(data), size), addresses=addresses)
    assert (found.blocks, found.length) == (blocks, len(data))


def test_an_address_is_not_looked_for_unless_announced() -> None:
    data = ram_setup({"a": 0x1000, "b": 0x1000}, addresses=[0x4000000000, 0]) + RAM_EOS
    assert step([data])[0].error is MalformedStreamError
    plain = ram_setup({"a": 0x1000}) + RAM_EOS
    assert step([plain], addresses=True)[0].length == 0, "the end of section is taken for the address"


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize("length", [0, 0x3000, 2**64 - 0x1000])
def test_block_lengths_must_make_up_the_total(length: int, size: int) -> None:
    first = counted("a") + be64(0x1000)
    data = be64(0x3000 | MEM_SIZE) + first + counted("bad") + be64(length) + RAM_EOS
    found = agree(data, range(0, len(data), size))
    assert (found.error, found.error_at) == (MalformedStreamError, 8 + len(first))


def test_an_empty_setup_list() -> None:
    assert agree(be64(MEM_SIZE) + RAM_EOS).length == 16


# --- one reader, many sections


def test_one_reader_serves_all_sections_of_an_id() -> None:
    reader = RamReader()
    offset = 0
    for body in (
        ram_setup({"a": 0x5000}) + RAM_EOS,
        ram_page(0, bytes(4096), "a") + ram_zero(0) * 99 + RAM_EOS,
        RAM_EOS,
    ):
        for at, piece in enumerate(cut(body, range(0, len(body), 11))):
            length, ended = reader.read(memoryview(piece), offset)
            offset += length
            assert ended == ((at + 1) * 11 >= len(body))
    assert (reader.full_pages, reader.zero_pages, reader.blocks) == (1, 99, {"a": 0x5000})


def test_a_refused_hook_says_what_to_do() -> None:
    with pytest.raises(UnsupportedFeatureError, match=r"RDMA.*tcp"):
        RamReader().read(memoryview(be64(HOOK) + bytes(30)), 0)


def test_runs_are_not_stepped_page_by_page() -> None:
    """A million zero pages, and 16 MiB of full ones: a Python operation for each would take many times as long."""
    zeroes, pages = ram_zero(0x1000) * 1_000_000 + RAM_EOS, ram_page(0x1000, bytes(4096)) * 4096 + RAM_EOS
    started = time.process_time()
    assert RamReader().read(memoryview(zeroes), 0) == (len(zeroes), True)
    assert RamReader().read(memoryview(pages), 0) == (len(pages), True)
    assert time.process_time() - started < 0.5
