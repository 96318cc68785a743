"""The file header: read whole, byte by byte, with more behind it; and what begins otherwise."""

import pytest

from formats.errors import ForeignStreamError, MalformedStreamError
from formats.frame.records import MAGIC
from formats.stream.file_header import read_file_header
from formats.stream.refusals import FOREIGNERS
from tests.streams import FILE_HEADER, be32


def test_whole_byte_by_byte_and_with_trailing_data() -> None:
    for length in range(len(FILE_HEADER)):
        for ended in False, True:
            if length or not ended:
                assert read_file_header(memoryview(FILE_HEADER[:length]), ended=ended) is None
    for trailing in b"", b"\x07", bytes(100):
        assert read_file_header(memoryview(FILE_HEADER + trailing), ended=False) == len(FILE_HEADER)


@pytest.mark.parametrize("version", [0, 2, 4, 0xFFFFFFFF])
def test_another_version(version: int) -> None:
    with pytest.raises(MalformedStreamError, match=f"version {version}; only 3") as caught:
        read_file_header(memoryview(b"QEVM" + be32(version)), ended=False)
    assert caught.value.offset == 4


@pytest.mark.parametrize(("magic", "what", "advice"), FOREIGNERS, ids=[what for _, what, _ in FOREIGNERS])
def test_a_stream_of_another_kind(magic: bytes, what: str, advice: str) -> None:
    for length in range(1, len(magic)):
        assert read_file_header(memoryview(magic[:length]), ended=False) is None
        if MAGIC.startswith(magic[:length]):
            continue  # so begins a migration, too
        with pytest.raises(ForeignStreamError, match="no migration stream: it begins with"):
            read_file_header(memoryview(magic[:length]), ended=True)
    with pytest.raises(ForeignStreamError) as caught:
        read_file_header(memoryview(magic + bytes(20)), ended=False)
    assert (caught.value.message, caught.value.advice) == (f"this is {what}, not a migration stream", advice)


def test_anything_else_is_told_by_its_first_bytes() -> None:
    with pytest.raises(ForeignStreamError, match="it begins with 47 45 54 20, not with 'QEVM'"):
        read_file_header(memoryview(b"GET / HTTP/1.1"), ended=False)
