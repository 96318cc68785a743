"""Streams in files: unpacked on the way in, and found where they begin."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sys
import zlib
from typing import TYPE_CHECKING

import pytest

from proxy.captures.stream_files import file_and_offset, open_stream
from proxy.errors import ConfigError, ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTENT = b"QEVM" + os.urandom(100_000)


@pytest.mark.parametrize("pack", [bytes, lzma.compress, gzip.compress, bz2.compress])
def test_streams_are_unpacked(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "stream").write_bytes(pack(CONTENT))
    with open_stream(str(tmp_path / "stream")) as stream:
        assert stream.read() == CONTENT


@pytest.mark.parametrize("content", [b"", b"Q", b"\x1f", b"BZ"])
def test_short_files_are_read_as_they_are(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stream").write_bytes(content)
    with open_stream(str(tmp_path / "stream")) as stream:
        assert stream.read() == content


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, bz2.compress])
def test_a_cut_archive_is_no_short_stream(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "stream").write_bytes(pack(CONTENT)[:-20])
    with pytest.raises(ProxyError, match="stream: "), open_stream(str(tmp_path / "stream")) as stream:
        stream.read()


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, bz2.compress])
def test_a_damaged_archive_is_one_error(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = bytearray(pack(bytes(100_000)))
    middle = len(packed) // 2
    packed[middle : middle + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "stream").write_bytes(packed)
    with pytest.raises(ProxyError, match="stream: "), open_stream(str(tmp_path / "stream")) as stream:
        stream.read()


def test_gzip_data_that_do_not_inflate_are_one_error(tmp_path: Path) -> None:
    """zlib.error is no OSError."""
    (tmp_path / "stream").write_bytes(gzip.compress(CONTENT)[:10] + b"\xff" * 100)
    with pytest.raises(zlib.error):
        zlib.decompress(b"\xff" * 100, wbits=-15)
    with pytest.raises(ProxyError, match="stream: "), open_stream(str(tmp_path / "stream")) as stream:
        stream.read()


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProxyError, match="missing: No such file"), open_stream(str(tmp_path / "missing")):
        pass
    with pytest.raises(ProxyError, match="Is a directory"), open_stream(str(tmp_path)):
        pass


def test_standard_input_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(CONTENT))
    monkeypatch.setattr(sys, "stdin", stdin)
    with open_stream("-") as stream:
        assert stream.read() == CONTENT
    assert not stdin.buffer.closed


def test_an_error_of_the_output_is_not_blamed_on_the_input(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(CONTENT)
    with pytest.raises(Exception, match="No space left") as caught, open_stream(str(tmp_path / "input")):
        raise OSError(28, "No space left on device", "elsewhere")
    assert "input" not in str(caught.value)


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """What cannot be wound back is not looked at beforehand."""
    read_end, write_end = os.pipe()
    os.write(write_end, CONTENT[:1000])
    os.close(write_end)
    try:
        with open_stream(f"/dev/fd/{read_end}") as stream:
            assert stream.read() == CONTENT[:1000]
    finally:
        os.close(read_end)


# --- where in a file


@pytest.mark.parametrize(
    ("name", "path", "offset"),
    [
        ("guest", "guest", 0),
        ("guest,offset=5", "guest,offset=5", 0),
        ("file:guest", "guest", 0),
        ("file:/a/b c:d", "/a/b c:d", 0),
        ("./file:guest", "./file:guest", 0),
        ("file:guest,offset=0", "guest", 0),
        ("file:guest,offset=4096", "guest", 4096),
        ("file:guest,offset=0x1000", "guest", 4096),
        ("file:guest,offset=4096b", "guest", 4096),
        ("file:guest,offset=4k", "guest", 4096),
        ("file:guest,offset=3M", "guest", 3 << 20),
        ("file:guest,offset=1G", "guest", 1 << 30),
        ("file:guest,offset=2t", "guest", 2 << 40),
    ],
)
def test_names_as_qemu_has_them(name: str, path: str, offset: int) -> None:
    assert file_and_offset(name) == (path, offset)


@pytest.mark.parametrize("offset", ["", "-1", "1.5M", "M", "4kk", "4 k", "0x", "1,offset=2", "\u0664"])
def test_offsets_that_are_none(offset: str) -> None:
    with pytest.raises(ConfigError, match="is no number of bytes, such as 4096"):
        file_and_offset(f"file:guest,offset={offset}")


@pytest.mark.parametrize("pack", [bytes, lzma.compress])
def test_a_stream_within_a_file(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "stream").write_bytes(bytes(100) + pack(CONTENT))
    with open_stream(f"file:{tmp_path / 'stream'},offset=100") as stream:
        assert stream.read() == CONTENT
        assert stream.start == (100 if pack is bytes else None)
        assert stream.seekable() == (pack is bytes)


def test_a_pipe_has_no_offset() -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    try:
        with (
            pytest.raises(ConfigError, match="what is no file has no offset"),
            open_stream(f"file:/dev/fd/{read_end},offset=1"),
        ):
            pass
    finally:
        os.close(read_end)


def test_what_is_half_rewritten_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(CONTENT)
    (tmp_path / "link").symlink_to("stream")
    (tmp_path / "stream.unfinished").write_bytes(b"{}")
    for name in (tmp_path / "stream", tmp_path / "link", f"file:{tmp_path / 'stream'},offset=1"):
        with pytest.raises(ConfigError, match="a rewrite --in-place of it broke off"), open_stream(str(name)):
            pass
    with open_stream(str(tmp_path / "link"), update=True) as stream:
        assert stream.read() == CONTENT
