"""State volumes: a stream, and then whatever the volume holds, which keeps its place."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from proxy.captures import unfinished
from proxy.captures.unfinished import note_of
from proxy.hosts.profile_text import write_profile
from tests.proxy.captures.test_rewriting import SMP2, SWAP, run, save_file
from tests.proxy.helpers import NEWER, NEWER_SWAPPED, OLDER, capture, device_state, profile, short
from tests.streams import tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GIB = 1 << 30
DOWNGRADE = ("--allow-register", ",".join(NEWER_SWAPPED), "--allow-loss", "any")
RESTS = {"zeroes": bytes(5000), "other": b"an older state" * 1000, "a byte": b"\x01"}


def rewritten(stream: bytes, folder: Path, *arguments: str) -> bytes:
    """Return what a stream alone becomes."""
    (folder / "alone").write_bytes(stream)
    assert run("rewrite", folder / "alone", folder / "alone.out", *arguments).returncode == 0
    return (folder / "alone.out").read_bytes()


@contextmanager
def block_device(file: Path) -> Iterator[str]:
    """Yield the name of a block device that a file is behind."""
    loop = ["losetup", "--find", "--show", "--direct-io=off", str(file)]
    name = subprocess.run(loop, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield name
    finally:
        subprocess.run(["losetup", "--detach", name], check=True)


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("way", ["copy", "in place", "packed", "libvirt"])
def test_what_follows_keeps_its_place(tmp_path: Path, rest: str, way: str) -> None:
    stream, after = short(SMP2), RESTS[rest]
    expected = rewritten(stream, tmp_path, *SWAP) + after
    volume, target = tmp_path / "volume", tmp_path / "target"
    volume.write_bytes(save_file(stream + after, "raw") if way == "libvirt" else stream + after)
    if way == "in place":
        result = run("rewrite", volume, "--in-place", *SWAP)
        found = volume.read_bytes()
    elif way == "packed":
        result = run("rewrite", volume, target.with_suffix(".xz"), *SWAP)
        found = subprocess.run(["xz", "-dc", target.with_suffix(".xz")], check=True, capture_output=True).stdout
    else:
        result = run("rewrite", volume, target, *SWAP)
        found = target.read_bytes()
    assert result.returncode == 0, result.stderr
    assert found == (save_file(expected, "raw") if way == "libvirt" else expected)
    kind = "zeroes" if rest == "zeroes" else "not zeroes"
    assert f"{len(after)} bytes follow the end of the stream ({kind})".encode() in result.stderr


@pytest.mark.parametrize("way", ["copy", "in place", "pipe"])
def test_registers_are_left_out_and_what_follows_stays(tmp_path: Path, way: str) -> None:
    """What the stream no longer needs becomes zeroes."""
    (tmp_path / "older.toml").write_text(write_profile(profile(OLDER)))
    judged = ("--host", str(tmp_path / "older.toml"), *DOWNGRADE)
    stream, after = short(NEWER), b"rest" * 1000
    shorter = rewritten(stream, tmp_path, *judged)
    assert len(shorter) < len(stream)
    volume, target = tmp_path / "volume", tmp_path / "target"
    volume.write_bytes(stream + after)
    if way == "in place":
        assert run("rewrite", volume, "--in-place", *judged).returncode == 0
        found = volume.read_bytes()
    elif way == "pipe":
        result = run("rewrite", volume, "-", *judged)
        assert result.returncode == 0
        found = result.stdout
    else:
        assert run("rewrite", volume, target, *judged).returncode == 0
        found = target.read_bytes()
    assert found == shorter + bytes(len(stream) - len(shorter)) + after
    # It is one that every command still takes, and that needs nothing more.
    (tmp_path / "again").write_bytes(found)
    result = run("rewrite", tmp_path / "again", "--in-place", *judged)
    assert b"unchanged" in result.stderr
    assert (tmp_path / "again").read_bytes() == found


def test_every_command_takes_it_and_strict_refuses(tmp_path: Path) -> None:
    volume, host = tmp_path / "volume", tmp_path / "host.toml"
    volume.write_bytes(capture(SMP2) + bytes(1000))
    says = b"1000 bytes follow the end of the stream (zeroes)"
    assert run("host", "learn", volume, "-o", host).returncode == 0
    for command, code in {
        ("inspect", volume): 0,
        ("inspect", volume, "--json"): 0,
        ("check", volume, "--host", host): 0,
        ("diff", volume, host): 0,
        ("rewrite", volume, tmp_path / "out", *SWAP): 0,
        ("rewrite", volume, tmp_path / "out", *SWAP, "--report", "-"): 0,
    }.items():
        result = run(*command)
        assert result.returncode == code, result.stderr
        if "--json" in command:
            found = json.loads(result.stdout)
            assert found["trailing"] == {"bytes": 1000, "zeroes": True}
            assert found["length"] == len(capture(SMP2))
        else:
            assert says in result.stderr
        if "--report" in command:
            assert json.loads(result.stdout)["trailing"] == {"bytes": 1000, "zeroes": True}
        strictly = run(*command, "--strict")
        assert strictly.returncode == 3
        assert b"more bytes follow the end of the stream" in strictly.stderr


def test_a_hundred_gib_of_volume(tmp_path: Path) -> None:
    """Nothing but the stream, and what may be held of device state, is read; a copy has the same holes."""
    volume, copy = tmp_path / "volume", tmp_path / "copy"
    volume.write_bytes(capture(SMP2))
    os.truncate(volume, 100 * GIB)
    blocks = volume.stat().st_blocks
    for command in (
        ("inspect", volume),
        ("check", volume, "--midr", "0x411fd073", "--allow-midr", "0x411fd070"),
        ("rewrite", volume, copy, *SWAP),
        ("rewrite", volume, "--in-place", *SWAP),
    ):
        result = run(*command)
        assert result.returncode == 0, result.stderr
        assert f"{100 * GIB - len(capture(SMP2))} bytes follow the end of the stream (zeroes)".encode() in result.stderr
    assert volume.stat().st_size == copy.stat().st_size == 100 * GIB
    assert volume.stat().st_blocks <= blocks + 16
    assert copy.stat().st_blocks <= blocks + (4 << 20) // 512 + 16  # the step in which the hole begins
    expected = rewritten(capture(SMP2), tmp_path, *SWAP)
    for path in (volume, copy):
        with path.open("rb") as file:
            assert file.read(len(expected)) == expected


def test_a_block_device(tmp_path: Path) -> None:
    file = tmp_path / "behind"
    stream = short(SMP2)
    file.write_bytes(stream)
    os.truncate(file, 8 << 20)
    expected = rewritten(stream, tmp_path, *SWAP)
    with block_device(file) as device:
        result = run("inspect", device, "--json")
        assert json.loads(result.stdout)["trailing"] == {"bytes": (8 << 20) - len(stream), "zeroes": True}
        assert run("check", device, "--midr", "0x411fd073").returncode == 4
        assert run("rewrite", device, tmp_path / "out", *SWAP).returncode == 0
        result = run("rewrite", device, "--in-place", *SWAP)
        assert result.returncode == 0, result.stderr
        with open(device, "rb") as opened:
            assert opened.read() == expected + bytes((8 << 20) - len(stream))
    assert (tmp_path / "out").read_bytes() == expected + bytes((8 << 20) - len(stream))


def test_a_block_devices_note_outlives_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev is gone with the machine's stop, so it lies elsewhere; the same command finishes from it."""
    monkeypatch.setattr(unfinished, "_ROOTS_STATE", str(tmp_path / "state"))
    file = tmp_path / "behind"
    stream = short(SMP2)
    file.write_bytes(stream)
    os.truncate(file, 4 << 20)
    with block_device(file) as device:
        note = note_of(device)
        assert note == str(tmp_path / "state" / "vmstate-proxy" / f"{device.replace('/', '%2F')}.unfinished")
        place = stream.index((0x411FD070).to_bytes(8, "big"), device_state(stream).offset)
        from proxy.captures.in_place import Change, Patch

        patch = Patch((Change(place, stream[place : place + 8], b"12345678"),), 4 << 20, 4 << 20)
        with pytest.raises(ZeroDivisionError), unfinished.noted(device, patch):
            raise ZeroDivisionError
        assert os.path.exists(note)
        with open(device, "r+b") as opened:
            assert unfinished.finish(device, opened.fileno())
            assert os.pread(opened.fileno(), 8, place) == b"12345678"
        assert not os.path.exists(note)


def test_a_live_stream_is_as_strict_as_ever() -> None:
    from formats.errors import MalformedStreamError
    from proxy.rewriter.rewriter import Rewriter
    from tests.proxy.helpers import judge

    rewriter = Rewriter(judge(), live=True, allow_no_return_path=True)
    rewriter.feed(tiny().stream() + b"\0")
    with pytest.raises(MalformedStreamError, match="more bytes follow the end"):
        rewriter.end()
