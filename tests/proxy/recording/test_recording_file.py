"""The file of a recording: its name while it is not complete, and what it is packed with."""

from __future__ import annotations

import gzip
import lzma
import os
import socket
from typing import TYPE_CHECKING

import pytest

from proxy.captures.stream_files import open_stream
from proxy.errors import ConfigError, ProxyError
from proxy.recording.recording_file import RecordingFile
from tests.proxy.live.test_session import rest, send
from tests.proxy.recording.record_streams import DEVICES, STREAM
from tests.proxy.recording.test_recorder import recording

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("name", "unpack"), [("out.xz", lzma.decompress), ("out.gz", gzip.decompress)])
@pytest.mark.parametrize("whole", [True, False])
async def test_a_name_that_says_so_packs(tmp_path: Path, name: str, unpack: object, whole: bool) -> None:
    assert callable(unpack)
    end = len(STREAM) if whole else DEVICES + 500
    async with recording(tmp_path, name=name) as it:
        await send(it.source, STREAM[8:end])
        it.source.shutdown(socket.SHUT_WR)
        await rest(it.source)
        await it.report()
    ((left, data),) = it.left().items()
    assert left == (name if whole else f"{name}.partial")
    assert unpack(data) == STREAM[:end]
    with open_stream(str(tmp_path / left)) as stream:
        assert stream.read() == STREAM[:end]


@pytest.mark.parametrize("name", ["out.zst", "out.bz2"])
def test_other_packers_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.xz or \.gz"):
        RecordingFile(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path, link = tmp_path / "out", tmp_path / "link"
    path.write_bytes(b"old")
    link.symlink_to(path)
    file = RecordingFile(str(link))
    file.write(b"new")
    assert path.read_bytes() == b"old"
    file.keep()
    assert path.read_bytes() == link.read_bytes() == b"new"
    assert link.is_symlink()
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "link"}


def test_what_is_no_file_is_written_as_it_is() -> None:
    file = RecordingFile("/dev/null")
    assert file.partial == "/dev/null"
    file.write(b"x")
    file.keep()
    RecordingFile("/dev/null").discard()
    assert os.path.exists("/dev/null")


@pytest.mark.parametrize("name", ["", "no/such/folder/out"])
def test_a_file_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProxyError):
        RecordingFile(str(tmp_path / name))
