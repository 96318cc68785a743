"""Standard input and output, and files that cannot be written on."""

from __future__ import annotations

import bz2
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1
from tests.captures import CAPTURES
from tests.proxy.cli.command_line import ALLOWED, SMP2, Result, spawn
from tests.proxy.helpers import R3, capture, device_state, differences, short, with_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_from_standard_input_to_standard_output(run: Callable[..., Result]) -> None:
    result = run("rewrite", "-", "-", *ALLOWED, stdin=short(SMP2))
    assert result.code == 0
    assert result.out == with_value(with_value(short(SMP2), MIDR_EL1, R3, 0), MIDR_EL1, R3, 1)


def test_pipes() -> None:
    done = spawn("rewrite", "-", "-", *ALLOWED, input=capture(SMP2), stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert len(differences(capture(SMP2), done.stdout)) == 2


def test_a_refused_stream_leaves_no_device_state_on_standard_output(run: Callable[..., Result]) -> None:
    result = run("rewrite", "-", "-", "--midr", hex(R3), stdin=capture(SMP2))
    assert result.code == 4
    assert len(result.out) <= device_state(capture(SMP2)).offset


def test_output_and_report_cannot_share_standard_output(run: Callable[..., Result], stream: Path) -> None:
    assert run("rewrite", stream, "-", *ALLOWED, "--report", "-").code == 2


def test_a_profile_to_standard_output(run: Callable[..., Result], host: Path) -> None:
    result = run("host", "learn", CAPTURES / "kvm-trixie-a57r3.xz", "-o", "-")
    assert result.code == 0
    assert result.out == host.read_bytes()


@pytest.mark.parametrize(
    "args", [["rewrite", "-", "-", *ALLOWED], ["inspect", "-"], ["inspect", "-", "--json"]], ids=" ".join
)
def test_a_reader_that_goes_away_is_no_traceback(args: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end) as closed:
        done = spawn(*args, input=capture(SMP2), stdout=closed)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["rewrite", "-", "-", *ALLOWED],
        ["inspect", "-"],
        ["host", "learn", "-", "-o", "-"],
        ["rewrite", "-", "/dev/null", *ALLOWED, "--report", "-"],
    ],
    ids=" ".join,
)
def test_a_full_disk_under_standard_output_is_one_line(args: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = spawn(*args, input=capture(SMP2), stdout=full)
    err = done.stderr.decode()
    assert done.returncode == 1, err
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert "No space left on device" in err
    assert "vmstate-proxy: -: No space left" not in err  # `-` is the input


def test_a_full_disk_under_the_report_is_one_line(run: Callable[..., Result], stream: Path) -> None:
    result = run("rewrite", stream, "/dev/null", *ALLOWED, "--report", "/dev/full")
    assert result.code == 1
    assert "/dev/full: No space left on device" in result.err


def test_a_damaged_input_is_not_blamed_on_the_output(run: Callable[..., Result], tmp_path: Path) -> None:
    packed = bytearray(bz2.compress(capture(SMP2)))
    packed[len(packed) // 2 :] = b"\xff" * 1000
    (tmp_path / "in").write_bytes(packed)
    result = run("rewrite", tmp_path / "in", tmp_path / "out", *ALLOWED)
    assert result.code == 1
    assert result.error().startswith(f"vmstate-proxy: {tmp_path / 'in'}: ")
    assert not (tmp_path / "out").exists()


def test_rewriting_a_file_onto_itself(run: Callable[..., Result], stream: Path) -> None:
    assert run("rewrite", stream, stream, *ALLOWED).code == 0
    assert len(differences(capture(SMP2), stream.read_bytes())) == 2
    assert run("rewrite", stream, stream, "--midr", "0x410fd034").code == 4
    assert len(stream.read_bytes()) == len(capture(SMP2))
