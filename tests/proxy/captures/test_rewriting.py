"""Rewriting files as they lie: in place, at an offset, with holes; and what broke off, be it by SIGKILL."""

from __future__ import annotations

import fcntl
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from formats.arm.sysreg import parse_register
from formats.files.libvirt_save import FORMATS
from proxy.captures.rewriting import holds_mapped_ram, rewrite_in_place, rewrite_to
from proxy.captures.stream_files import open_stream
from proxy.errors import ConfigError, ProxyError, RefusedError
from proxy.hosts.profile_text import write_profile
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import (
    NEWER,
    NEWER_SWAPPED,
    OLDER,
    R0,
    ROOT,
    capture,
    device_state,
    downgrade,
    downgraded,
    judge,
    observer,
    profile,
    short,
)
from tests.streams import mapped_head

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.judging.judge import Judge

SMP2 = "kvm-trixie-a57r0-smp2"
SWAP = ("--midr", "0x411fd073", "--allow-midr", hex(R0))


def devices(stream: bytes) -> bytes:
    return stream[device_state(stream).offset :]


@cache
def mapped(name: str, start: int = 0) -> bytes:
    """Return a recorded device state behind mapped RAM, as a file from `start` on."""
    return mapped_head(start=start, align=1 << 20) + devices(short(name))


def save_file(stream: bytes, packing: str) -> bytes:
    numbers = [2, 1000, 1, FORMATS.index(packing), 0, *[0] * 14]
    return (
        b"LibvirtQemudSave"
        + b"".join(n.to_bytes(4, "little") for n in numbers)
        + b"<domain/>".ljust(1000, b"\0")
        + stream
    )


START = 92 + 1000
FILES: dict[str, tuple[Callable[[str], bytes], int]] = {
    "plain": (short, 0),
    "with RAM": (capture, 0),
    "mapped": (mapped, 0),
    "plain at an offset": (lambda name: bytes(range(100)) + short(name), 100),
    "mapped at an offset": (lambda name: bytes(range(100)) + mapped(name, 100), 100),
    "libvirt raw": (lambda name: save_file(short(name), "raw"), 0),
    "libvirt sparse": (lambda name: save_file(mapped(name, START), "sparse"), 0),
}
"""Files, and the offsets that their streams have to be asked for with."""


def named(path: Path, offset: int) -> str:
    return f"file:{path},offset={offset}" if offset else str(path)


def in_place(name: str, the_judge: Judge) -> Rewriter:
    rewriter = Rewriter(the_judge, live=False)
    with open_stream(name, update=True) as stream:
        rewrite_in_place(stream, rewriter, lambda _: None)
    return rewriter


def copied(name: str, target: Path, the_judge: Judge) -> Rewriter:
    rewriter = Rewriter(the_judge, live=False)
    with open_stream(name) as stream:
        rewrite_to(stream, str(target), rewriter, lambda _: None)
    return rewriter


def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *map(str, arguments)], cwd=ROOT, capture_output=True, timeout=60, check=False
    )


# --- any layout


def told(rewriter: Rewriter) -> dict[str, object]:
    """The report, but for what no other one has."""
    return rewriter.report.as_dict() | {"id": ""}


@pytest.mark.parametrize("kind", FILES)
def test_swapped(tmp_path: Path, kind: str) -> None:
    make, offset = FILES[kind]
    path, copy = tmp_path / "guest", tmp_path / "copy"
    old = make(SMP2)
    path.write_bytes(old)
    one = copied(named(path, offset), copy, judge(R0))
    assert path.read_bytes() == old
    inode = path.stat().st_ino
    other = in_place(named(path, offset), judge(R0))
    new = path.read_bytes()
    assert new == copy.read_bytes()
    assert sum(one != other for one, other in zip(new, old, strict=True)) == 2, "one byte of each vCPU's MIDR_EL1"
    assert told(one) == told(other)
    assert one.report.outcome == "rewritten"
    assert one.report.bytes_in == one.report.bytes_out == len(old) - (START if "libvirt" in kind else offset)
    assert path.stat().st_ino == inode
    assert sorted(os.listdir(tmp_path)) == ["copy", "guest"]


@pytest.mark.parametrize("kind", FILES)
def test_left_out(tmp_path: Path, kind: str) -> None:
    """The device state, at the end of the file, becomes shorter."""
    make, offset = FILES[kind]
    path, copy = tmp_path / "guest", tmp_path / "copy"
    old = make(NEWER)
    path.write_bytes(old)
    one = copied(named(path, offset), copy, downgrade())
    other = in_place(named(path, offset), downgrade())
    shorter = devices(downgraded(short(NEWER)))
    assert path.read_bytes() == copy.read_bytes() == old[: -len(devices(short(NEWER)))] + shorter
    assert told(one) == told(other)
    assert one.report.bytes_in - one.report.bytes_out == len(old) - len(path.read_bytes()) > 0


@pytest.mark.parametrize("kind", FILES)
def test_what_needs_no_change_is_not_written(tmp_path: Path, kind: str) -> None:
    make, offset = FILES[kind]
    path = tmp_path / "guest"
    path.write_bytes(make(SMP2))
    in_place(named(path, offset), judge(R0))
    before = path.stat()
    assert in_place(named(path, offset), judge(R0)).report.outcome == "unchanged"
    assert in_place(named(path, offset), observer()).report.outcome == "unchanged"
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("kind", FILES)
def test_what_is_refused_is_not_written(tmp_path: Path, kind: str) -> None:
    make, offset = FILES[kind]
    path = tmp_path / "guest"
    path.write_bytes(make(SMP2))
    before = path.stat()
    with pytest.raises(RefusedError):
        in_place(named(path, offset), judge())
    with pytest.raises(RefusedError):
        copied(named(path, offset), tmp_path / "copy", judge())
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(tmp_path) == ["guest"]


@pytest.mark.parametrize("kind", FILES)
def test_every_reading_command_takes_it(tmp_path: Path, kind: str) -> None:
    make, offset = FILES[kind]
    path, learned = tmp_path / "guest", tmp_path / "learned.toml"
    path.write_bytes(make(SMP2))
    name = named(path, offset)
    inspected = json.loads(run("inspect", name, "--json").stdout)
    assert [vcpu["index"] for vcpu in inspected["vcpus"]] == [0, 1]
    assert inspected["length"] == len(make(SMP2)) - (START if "libvirt" in kind else offset)
    [ram] = [one for one in inspected["sections"] if one["name"] == "ram" and one["type"] == "end"]
    [timer] = [one for one in inspected["sections"] if one["name"] == "timer"]
    assert ram["offset"] + ram["length"] <= timer["offset"] < inspected["length"]
    assert run("check", name, *SWAP).returncode == 0
    assert run("host", "learn", name, "-o", learned).returncode == 0
    (tmp_path / "plain").write_bytes(short(SMP2))
    assert run("diff", name, tmp_path / "plain", "--all", "--exit-code").returncode == 0


# --- mapped RAM and holes


def test_holes_stay(tmp_path: Path) -> None:
    path, copy = tmp_path / "guest", tmp_path / "copy"
    stream = mapped(SMP2)
    with path.open("wb") as file:
        for at in range(0, len(stream), 4096):
            piece = stream[at : at + 4096]
            if any(piece):
                file.seek(at)
                file.write(piece)
    assert path.read_bytes() == stream
    copied(str(path), copy, judge(R0))
    assert max(copy.stat().st_blocks, path.stat().st_blocks) * 512 < len(stream) // 4


@pytest.mark.parametrize("out", ["-", "out.xz", "pipe"])
def test_where_no_holes_can_be_there_are_zeroes(tmp_path: Path, out: str) -> None:
    path = tmp_path / "guest"
    path.write_bytes(mapped(SMP2))
    expected = tmp_path / "expected"
    copied(str(path), expected, judge(R0))
    if out == "-":
        written = run("rewrite", path, "-", *SWAP).stdout
    elif out == "pipe":
        os.mkfifo(tmp_path / out)
        with (tmp_path / "read").open("wb") as sink, subprocess.Popen(["cat", tmp_path / out], stdout=sink) as reader:
            assert run("rewrite", path, tmp_path / out, *SWAP).returncode == 0
            assert reader.wait(60) == 0
        written = (tmp_path / "read").read_bytes()
    else:
        assert run("rewrite", path, tmp_path / out, *SWAP).returncode == 0
        written = lzma.decompress((tmp_path / out).read_bytes())
    assert written == expected.read_bytes()


@pytest.mark.parametrize("out", ["-", "out.xz"])
def test_what_stands_before_the_stream_goes_into_plain_files_only(tmp_path: Path, out: str) -> None:
    path = tmp_path / "guest"
    path.write_bytes(bytes(100) + mapped(SMP2, 100))
    done = run("rewrite", f"file:{path},offset=100", out if out == "-" else tmp_path / out, *SWAP)
    assert done.returncode == 2
    assert b"OUT has to be a plain file" in done.stderr
    assert os.listdir(tmp_path) == ["guest"]


def test_packed_mapped_ram_is_read_and_rewritten(tmp_path: Path) -> None:
    path, expected = tmp_path / "guest.xz", tmp_path / "expected"
    path.write_bytes(lzma.compress(mapped(SMP2)))
    (tmp_path / "guest").write_bytes(mapped(SMP2))
    copied(str(tmp_path / "guest"), expected, judge(R0))
    copied(str(path), tmp_path / "out", judge(R0))
    assert (tmp_path / "out").read_bytes() == expected.read_bytes()
    assert len(json.loads(run("inspect", path, "--json").stdout)["vcpus"]) == 2


def test_nothing_is_written_to_the_null_device(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    path.write_bytes(mapped(SMP2))
    assert run("rewrite", path, "/dev/null", *SWAP).returncode == 0
    assert path.read_bytes() == mapped(SMP2)


@pytest.mark.parametrize("cut", [5, 30, 200, 5000, 2 << 20])
def test_a_cut_file_is_a_broken_stream(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "guest"
    path.write_bytes(mapped(SMP2)[:cut])
    done = run("rewrite", path, "--in-place", *SWAP)
    assert done.returncode == 3
    assert f"offset {cut:#x}".encode() in done.stderr
    assert run("rewrite", path, tmp_path / "out", *SWAP).returncode == 3
    assert run("inspect", path).returncode == 3
    assert os.listdir(tmp_path) == ["guest"]


def test_what_holds_mapped_ram(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    for content, answer in ((mapped(SMP2), True), (short(SMP2), False), (b"nothing", False), (b"", False)):
        path.write_bytes(content)
        with open_stream(str(path)) as stream:
            assert holds_mapped_ram(stream) == answer
            assert stream.read() == content
    path.write_bytes(gzip.compress(mapped(SMP2)))
    with open_stream(str(path)) as stream:
        assert not holds_mapped_ram(stream)


# --- what cannot be changed in place


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_packed_file(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "guest"
    path.write_bytes(pack(short(SMP2)))
    with pytest.raises(ConfigError, match="it is packed, or no file, and cannot be changed in place; give OUT"):
        in_place(str(path), judge(R0))
    path.write_bytes(save_file(pack(short(SMP2)), "gzip" if pack is gzip.compress else "xz"))
    with pytest.raises(ConfigError, match="packed"):
        in_place(str(path), judge(R0))


def test_a_file_that_someone_has_locked(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    path.write_bytes(short(SMP2))
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ProxyError, match="guest: another process has locked it"):
            in_place(str(path), judge(R0))
    in_place(str(path), judge(R0))


def test_a_file_that_changes_while_it_is_judged(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    path.write_bytes(short(SMP2))
    rewriter = Rewriter(judge(R0), live=False)

    def meanwhile(_: int) -> None:
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")

    with open_stream(str(path), update=True) as stream, pytest.raises(ProxyError, match="guest: it was changed by"):
        rewrite_in_place(stream, rewriter, meanwhile)
    assert os.listdir(tmp_path) == ["guest"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("IN",), b"give either OUT or --in-place"),
        (("IN", "OUT", "--in-place"), b"give either OUT or --in-place"),
        (("-", "--in-place"), b"standard input cannot be changed in place"),
    ],
)
def test_usage(tmp_path: Path, arguments: tuple[str, ...], says: bytes) -> None:
    (tmp_path / "IN").write_bytes(short(SMP2))
    done = run("rewrite", *(tmp_path / one if one.isupper() else one for one in arguments), *SWAP)
    assert done.returncode == 2
    assert says in done.stderr
    assert (tmp_path / "IN").read_bytes() == short(SMP2)


# --- what broke off

KILLED = """
import os, signal, sys
left = int(sys.argv.pop(1))
def dying(call):
    def instead(*arguments):
        global left
        left -= 1
        if left < 0:
            if call is write:
                call(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    return instead
write = os.pwrite
os.pwrite, os.ftruncate, os.replace, os.unlink = map(dying, (write, os.ftruncate, os.replace, os.unlink))
from proxy.cli import main
main()
"""
"""Runs a command that is killed at its n-th change of the file system; of a write, half is done then."""


@pytest.mark.parametrize("shortens", [False, True], ids=["swapped", "left out"])
def test_killed_anywhere_it_is_finished_by_the_same_command(tmp_path: Path, shortens: bool) -> None:
    path, host = tmp_path / "guest", tmp_path / "older.toml"
    host.write_bytes(write_profile(profile(OLDER)).encode())
    old = mapped(NEWER if shortens else SMP2)
    path.write_bytes(old)
    swapped = ",".join({parse_register(name): name for name in NEWER_SWAPPED}.values())
    options = ("--host", host, "--allow-register", swapped, "--allow-loss", "any") if shortens else SWAP
    if shortens:
        options = (*options, "--allow-midr", "0x413fd0c1")
    assert run("rewrite", path, tmp_path / "expected", *options).returncode == 0
    new = (tmp_path / "expected").read_bytes()
    halves = 0
    for step in range(100):
        path.write_bytes(old)
        command = [sys.executable, "-c", KILLED, str(step), "rewrite", path, "--in-place", *options]
        killed = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
        if killed.returncode != -signal.SIGKILL:
            assert killed.returncode == 0, killed.stderr
            break
        if (tmp_path / "guest.unfinished").exists():
            halves += path.read_bytes() not in (old, new)
            refused = run("inspect", path)
            assert refused.returncode == 2
            assert b"a rewrite --in-place of it broke off" in refused.stderr
            assert run("rewrite", path, "--in-place", "--mode", "observe", *options).returncode == 2
            finished = run("rewrite", path, "--in-place", *options)
            assert finished.returncode == 0, finished.stderr
            assert b"finished an earlier rewrite, which broke off" in finished.stderr
        else:
            assert path.read_bytes() in (old, new)
            assert run("rewrite", path, "--in-place", *options).returncode == 0
        assert path.read_bytes() == new
        assert not (tmp_path / "guest.unfinished").exists()
    assert path.read_bytes() == new
    assert step >= 4
    assert halves >= 1 + shortens


def test_a_full_disk_leaves_the_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "guest"
    path.write_bytes(mapped(SMP2))
    real = os.pwrite
    writes: list[Any] = []

    def full(*arguments: Any) -> int:  # noqa: ANN401
        writes.append(arguments)
        if len(writes) == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ProxyError, match=r"guest: No space left on device; run it again, .*guest\.unfinished has"):
        in_place(str(path), judge(R0))
    assert in_place(str(path), judge(R0)).report.outcome == "unchanged"
    copied(str(path), tmp_path / "copy", judge(R0))
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
