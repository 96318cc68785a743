"""Lines fit a terminal, and are left whole for programs."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.captures import CAPTURES
from tests.proxy.helpers import ROOT, capture

if TYPE_CHECKING:
    from pathlib import Path

HOSTS = CAPTURES / "hosts"
COMMAND = [sys.executable, "-m", "proxy"]
CHECK = [*COMMAND, "check", str(HOSTS / "trixie-n1.toml"), "--host", str(HOSTS / "bookworm-a57.toml")]


def on_a_terminal(command: list[str], columns: int = 80) -> list[str]:
    """Run a command on a terminal; return the lines that it prints there."""
    near, far = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns)}
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=far, stderr=far, env=environment
    ) as process:
        os.close(far)
        pieces = []
        try:
            while piece := os.read(near, 1 << 16):
                pieces.append(piece)
        except OSError:
            """The terminal's other side is closed, which Linux calls an error."""
        process.wait()
    os.close(near)
    return b"".join(pieces).decode().replace("\r", "").splitlines()


def test_a_check_fits_a_terminal_but_for_the_options_to_paste() -> None:
    lines = on_a_terminal(CHECK)
    assert lines[0].startswith("The guest cannot go: ")
    wide = [line for line in lines if len(line) > 80]
    assert all(line.startswith("  if the guest can do with that: --allow-") for line in wide)


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", CAPTURES / "kvm-trixie-a57r3.xz", "--registers"),
        ("inspect", CAPTURES / "kvm-trixie-a57r3.xz", "--section", "pl011"),
        ("diff", CAPTURES / "kvm-trixie-a57r3.xz", CAPTURES / "kvm-bookworm-n1.xz"),
        ("policy", "check", "proxy/judging/policy_example.toml"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[::2])),
)
def test_a_terminal_has_room_for_every_line(arguments: tuple[object, ...]) -> None:
    lines = on_a_terminal([*COMMAND, *map(str, arguments)])
    assert len(lines) > 10
    assert max(map(len, lines)) <= 80


def test_a_check_for_a_program_has_whole_lines() -> None:
    lines = subprocess.run(CHECK, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    assert max(map(len, lines)) > 100


def test_no_help_is_cut() -> None:
    for group in ([], ["host"], ["policy"], ["transparent"]):
        lines = on_a_terminal([*COMMAND, *group, "--help"])
        commands = lines[lines.index("Commands:") + 1 :]
        assert commands
        assert not [line for line in commands if line.endswith("...")]
        assert max(map(len, commands)) <= 80


def test_an_error_of_a_rewrite_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(capture("kvm-trixie-a57r0")[:100_000])
    command = [*COMMAND, "rewrite", str(tmp_path / "cut"), str(tmp_path / "out"), "--midr", "0x411fd073"]
    for report in ([], ["--report", "-"], ["--report", str(tmp_path / "report")]):
        said = " ".join(on_a_terminal([*command, *report]))
        assert said.count("the stream ends where") == 1
    assert not (tmp_path / "out").exists()
