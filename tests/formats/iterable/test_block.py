"""The records of `block` sections."""

import struct

import pytest

from formats.errors import FormatError, MalformedStreamError
from formats.iterable.block import BLOCK_SIZE, BlockReader
from tests.streams import be64, counted, cut

DEVICE_BLOCK, EOS, PROGRESS, ZERO_BLOCK = 1, 2, 4, 8
END = be64(EOS)


def word(sector: int, flags: int) -> bytes:
    return struct.pack(">Q", sector << 9 | flags)


def read(data: bytes, size: int) -> tuple[int, bool]:
    """Read one body in pieces; return its length and whether it ended."""
    reader = BlockReader()
    offset = 0
    for piece in cut(data, range(0, len(data), size)):
        buffer = bytearray(piece)
        length, ended = reader.read(memoryview(buffer), offset)
        buffer[:] = b"\x02" * len(buffer)
        offset += length
        if ended:
            return offset, True
        assert length == len(piece)
    return offset, False


FULL = word(5, DEVICE_BLOCK) + counted("drive0") + END * (BLOCK_SIZE // 8)
BODIES = {
    "end": END,
    "end with bits above": word(2**55 - 1, EOS),
    "progress": word(100, PROGRESS) + END,
    "zero block": word(7, DEVICE_BLOCK | ZERO_BLOCK) + counted("d" * 255) + END,
    "unnamed zero block": word(7, DEVICE_BLOCK | ZERO_BLOCK) + counted("") + END,
    "block of what looks like ends": FULL + END,
    "all": word(0, PROGRESS) + FULL + word(1, DEVICE_BLOCK | ZERO_BLOCK) + counted("drive0") + FULL + END,
}


@pytest.mark.parametrize("trailing", [b"", b"\x7e\0\0\0\2", END])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_ends_at_its_end(body: bytes, trailing: bytes) -> None:
    for size in (1 if len(body) < 1000 else 4093, 7 if len(body) < 1000 else 65537, len(body) + 99):
        assert read(body + trailing, size) == (len(body), True)


@pytest.mark.parametrize("cut_header", range(1, 15))
def test_a_header_cut_anywhere(cut_header: int) -> None:
    reader = BlockReader()
    assert reader.read(memoryview(FULL[:cut_header]), 0) == (cut_header, False)
    rest = FULL[cut_header:] + END
    assert reader.read(memoryview(rest + b"x"), cut_header) == (len(rest), True)


def test_no_other_flags() -> None:
    for flags in set(range(512)) - {DEVICE_BLOCK, EOS, PROGRESS, DEVICE_BLOCK | ZERO_BLOCK}:
        with pytest.raises(MalformedStreamError) as caught:
            read(word(3, PROGRESS) + word(9, flags) + END, 1 if flags % 2 else 99)
        assert caught.value.offset == 8


def test_a_cut_body_has_not_ended() -> None:
    body = BODIES["zero block"]
    for end in range(len(body)):
        assert read(body[:end], 5) == (end, False)


def test_the_error_names_the_section() -> None:
    with pytest.raises(FormatError, match="'block'"):
        read(word(0, 0), 8)
