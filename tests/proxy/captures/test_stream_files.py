"""Streams in files: unpacked on the way in, all or nothing on the way out."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from proxy.captures.complete_file import complete_file
from proxy.captures.stream_files import file_and_offset, open_stream
from proxy.errors import ConfigError, ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable

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
    with pytest.raises(ConfigError, match="missing: No such file"), open_stream(str(tmp_path / "missing")):
        pass
    with pytest.raises(ConfigError, match="Is a directory"), open_stream(str(tmp_path)):
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


# --- output


def test_an_output_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with complete_file(str(path)) as file:
        file.write(CONTENT)
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["out"]


def write_and_fail(path: Path, error: BaseException) -> None:
    with complete_file(str(path)) as file:
        file.write(CONTENT)
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), ProxyError("x"), OSError(5, "x"), KeyboardInterrupt()])
def test_a_failed_output_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out"
    with pytest.raises((type(error), ProxyError)):
        write_and_fail(path, error)
    assert os.listdir(tmp_path) == []


def test_a_failed_output_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    path.chmod(0o600)
    with pytest.raises(ValueError, match="x"):
        write_and_fail(path, ValueError("x"))
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["out"]
    with complete_file(str(path)) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after"


def test_an_output_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with complete_file(str(tmp_path / "out")):
            pass
    finally:
        assert os.umask(mask) == 0o027
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_a_relative_name_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with complete_file("out") as file:
        file.write(b"x")
    assert (tmp_path / "out").read_bytes() == b"x"


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    """As root, /dev/stdout is such a link to a regular file, and must not be replaced."""
    (tmp_path / "links").mkdir()
    link, target = tmp_path / "links" / "link", tmp_path / "target"
    target.write_bytes(b"before")
    link.symlink_to(target)
    with complete_file(str(link)) as file:
        file.write(b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"


def test_links_that_lead_in_a_circle_are_no_output(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    with pytest.raises(ConfigError, match="one: "), complete_file(str(tmp_path / "one")):
        pass


def test_a_device_is_not_replaced() -> None:
    with complete_file("/dev/null") as file:
        file.write(CONTENT)
    assert Path("/dev/null").is_char_device()


def test_a_full_device_is_an_error_that_names_it() -> None:
    with pytest.raises(ProxyError, match="/dev/full: No space left"), complete_file("/dev/full") as file:
        file.write(CONTENT)


def test_an_output_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "out"
    with pytest.raises(ConfigError, match="missing/out: No such file"), complete_file(str(missing)):
        pass


def test_a_directory_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"), complete_file(str(tmp_path)):
        pass
    assert tmp_path.is_dir()


def test_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with complete_file("-") as file:
        file.write(CONTENT)
    assert capfdbinary.readouterr().out == CONTENT
    assert not sys.stdout.buffer.closed
