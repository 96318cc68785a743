"""The records of `dirty-bitmap` sections."""

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import MalformedStreamError
from formats.iterable.dirty_bitmap import DirtyBitmapReader
from tests.streams import be32, be64, counted, cut

EOS, ZEROES, BITMAP_NAME, DEVICE_NAME, START, COMPLETE, BITS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40
END = bytes([EOS])


def record(kind: int, node: str | None = None, bitmap: str | None = None, bits: bytes | None = b"") -> bytes:
    """Return a record; `bits` are those of BITS, None for zeroes."""
    flags = kind | (DEVICE_NAME if node is not None else 0) | (BITMAP_NAME if bitmap is not None else 0)
    if kind == BITS and bits is None:
        flags |= ZEROES
    out = bytes([flags])
    out += b"" if node is None else counted(node)
    out += b"" if bitmap is None else counted(bitmap)
    if kind == START:
        out += be32(65536) + b"\x01"
    elif kind == BITS:
        out += be64(0x0101010101010101) + be32(0x01010101)
        out += b"" if bits is None else be64(len(bits)) + bits
    return out


def read(data: bytes, cuts: Iterable[int]) -> tuple[int, bool]:
    """Read one body in pieces; return its length and whether it ended."""
    reader = DirtyBitmapReader()
    offset = 0
    for piece in cut(data, cuts):
        buffer = bytearray(piece)
        length, ended = reader.read(memoryview(buffer), offset)
        buffer[:] = END * len(buffer)
        offset += length
        if ended:
            return offset, True
        assert length == len(piece)
    return offset, False


names = st.sampled_from([None, None, "", "node0", "\x01" * 40, "n" * 255])
bits = st.sampled_from([None, b"", END * 8, b"\x7e" * 1000, bytes(range(256))])
records = st.builds(record, st.sampled_from([START, COMPLETE, BITS, BITS]), names, names, bits)


@settings(deadline=None, max_examples=100)
@given(st.lists(records, max_size=6), st.lists(st.integers(0, 2500), max_size=20), st.sampled_from([b"", END, b"\x7e"]))
def test_a_body_ends_at_its_end(bodies: list[bytes], cuts: list[int], trailing: bytes) -> None:
    body = b"".join(bodies) + END
    assert read(body + trailing, cuts) == (len(body), True)


@pytest.mark.parametrize("node", [None, "drive0"])
@pytest.mark.parametrize("bitmap", [None, "backup"])
@pytest.mark.parametrize("kind", [START, COMPLETE, BITS])
def test_byte_by_byte_and_cut_anywhere(kind: int, node: str | None, bitmap: str | None) -> None:
    for content in (b"\x01" * 17, None):
        body = record(kind, node, bitmap, content) + END
        assert read(body + b"\x01", range(len(body) + 1)) == (len(body), True)
        for end in range(len(body)):
            assert read(body[:end], ()) == (end, False)
            assert read(body, [end]) == (len(body), True)


def test_no_other_flags() -> None:
    before = record(COMPLETE, "a", "b")
    known = {EOS, *(kind | extra for kind in (START, COMPLETE, BITS) for extra in range(0, 16, 2))}
    for flags in set(range(256)) - known:
        with pytest.raises(MalformedStreamError, match="'dirty-bitmap'") as caught:
            read(before + bytes([flags]) + END * 40, range(0, 60, 1 if flags % 2 else 7))
        assert caught.value.offset == len(before)


def test_the_length_of_the_bits_is_be64() -> None:
    body = bytes([BITS]) + be64(0) + be32(8) + struct.pack(">Q", 1 << 40)
    assert read(body + bytes(5000), [len(body), 3000]) == (len(body) + 5000, False)
