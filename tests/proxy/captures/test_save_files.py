"""libvirt's save files and packed captures: read, rewritten, and written as they were."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from formats.errors import FormatError, MalformedStreamError, UnsupportedFeatureError
from formats.files.libvirt_save import FORMATS, HEADER_SIZE, is_save_file, parse_header
from tests.proxy.helpers import R0, ROOT, short

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STREAM = short("kvm-trixie-a57r0")
XML = b"<domain type='kvm'><name>g</name></domain>\0<cookie/>\0" + bytes(500)
PACK: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}
UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "gzip": gzip.decompress,
    "bzip2": bz2.decompress,
    "xz": lzma.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}
SUFFIXES = {"raw": ".stream", "gzip": ".gz", "bzip2": ".bz2", "xz": ".xz", "zstd": ".zst"}
OBSERVE = ("--mode", "observe")


def header(
    packing: str | int = "raw", *, order: str = "<", magic: bytes = b"LibvirtQemudSave", **numbers: int
) -> bytes:
    number = FORMATS.index(packing) if isinstance(packing, str) else packing
    words = [numbers.get("version", 2), numbers.get("data_len", len(XML)), 1, number, 43]
    return magic + struct.pack(f"{order}5I", *words) + bytes(56)


def save_file(packing: str, stream: bytes = STREAM, order: str = "<") -> bytes:
    return header(packing, order=order) + XML + PACK[packing](stream)


def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *map(str, arguments)], cwd=ROOT, capture_output=True, timeout=60, check=False
    )


def inspected(path: Path) -> dict[str, Any]:
    done = run("inspect", path, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- the header


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packing", [*PACK, "sparse"])
def test_a_header_in_either_byte_order(packing: str, order: str) -> None:
    found = parse_header(header(packing, order=order))
    assert (found.format, found.data_length, found.was_running) == (packing, len(XML), True)
    assert len(header()) == HEADER_SIZE == 92
    assert is_save_file(header())
    assert not is_save_file(STREAM)


def test_version_1_is_never_packed() -> None:
    assert parse_header(header("xz", version=1)).format == "raw"


@pytest.mark.parametrize(
    ("broken", "kind", "says"),
    [
        (header(magic=b"LibvirtQemudPart"), UnsupportedFeatureError, "not complete"),
        (header()[:91], MalformedStreamError, "cut short"),
        (header(version=3), MalformedStreamError, "version 3; 2 is known"),
        (header(data_len=0), MalformedStreamError, "0 bytes of XML"),
        (header(data_len=1 << 31), MalformedStreamError, "bytes of XML"),
        (header("lzop"), UnsupportedFeatureError, "format lzop .*lzop -dc"),
        (header(77), UnsupportedFeatureError, "format 77"),
    ],
)
def test_headers_that_do_not_do(broken: bytes, kind: type[FormatError], says: str) -> None:
    with pytest.raises(kind, match=says):
        parse_header(broken)


# --- the commands


@pytest.mark.parametrize("packing", PACK)
def test_a_save_file_is_read_and_written_as_it_was(tmp_path: Path, packing: str) -> None:
    source, target = tmp_path / "guest.save", tmp_path / "moved.save"
    source.write_bytes(save_file(packing))
    assert inspected(source)["length"] == len(STREAM)
    assert run("rewrite", source, target, *OBSERVE).returncode == 0
    written = target.read_bytes()
    start = HEADER_SIZE + len(XML)
    assert written[:start] == source.read_bytes()[:start]
    assert UNPACK[packing](written[start:]) == STREAM


def test_a_save_file_is_rewritten(tmp_path: Path) -> None:
    source, target = tmp_path / "guest.save", tmp_path / "moved.save"
    source.write_bytes(save_file("gzip", order=">"))
    done = run("rewrite", source, target, "--midr", "0x411fd073", "--allow-midr", hex(R0), "--report", "-")
    assert json.loads(done.stdout)["outcome"] == "rewritten"
    rewritten = gzip.decompress(target.read_bytes()[HEADER_SIZE + len(XML) :])
    assert sum(one != other for one, other in zip(rewritten, STREAM, strict=True)) == 1


@pytest.mark.parametrize("packing", PACK)
def test_the_name_says_how_a_capture_is_packed(tmp_path: Path, packing: str) -> None:
    source, target = tmp_path / "in", tmp_path / f"out{SUFFIXES[packing]}"
    source.write_bytes(PACK["zstd"](STREAM))
    assert run("rewrite", source, target, *OBSERVE).returncode == 0
    assert UNPACK[packing](target.read_bytes()) == STREAM
    assert inspected(target)["length"] == len(STREAM)


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(STREAM)
    for packing in PACK:
        names = [tmp_path / f"{which}{SUFFIXES[packing]}" for which in ("one", "other")]
        for name in names:
            run("rewrite", tmp_path / "in", name, *OBSERVE)
        assert names[0].read_bytes() == names[1].read_bytes()


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (header(magic=b"LibvirtQemudPart") + XML, 4, b"not complete"),
        (header("lzop") + XML, 4, b"lzop -dc"),
        (header() + XML[:20], 3, b"ends within its XML"),
        (header()[:40], 3, b"cut short"),
        (save_file("raw")[:-1000], 3, b"offset"),
        (save_file("xz")[:-1000], 1, b"in"),
        (header("xz") + XML + STREAM, 1, b"in"),
        (header("zstd") + XML + STREAM, 1, b"it cannot be unpacked"),
        (header("zstd") + XML + PACK["zstd"](STREAM)[:-100], 3, b"offset"),
    ],
    ids=["partial", "lzop", "xml", "header", "raw", "xz", "not xz", "not zstd", "zstd"],
)
@pytest.mark.parametrize("command", ["rewrite", "inspect", "check", "learn", "diff"])
def test_what_is_broken_is_one_line(tmp_path: Path, content: bytes, code: int, says: bytes, command: str) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(content)
    arguments: dict[str, tuple[object, ...]] = {
        "rewrite": ("rewrite", source, target, *OBSERVE),
        "inspect": ("inspect", source),
        "check": ("check", source, "--midr", "1"),
        "learn": ("host", "learn", source, "-o", target),
        "diff": ("diff", source, source),
    }
    done = run(*arguments[command])
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert str(source).encode() in done.stderr
    assert b"Traceback" not in done.stderr
    assert not target.exists()


def test_through_a_pipe_there_is_no_way_back_to_the_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "inspect", "-"],
        cwd=ROOT,
        input=save_file("raw"),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert b"give it as a file" in done.stderr
