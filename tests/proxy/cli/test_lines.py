"""Lines fit a terminal, and are left whole for programs."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.captures import CAPTURES
from tests.proxy.helpers import ROOT, capture

if TYPE_CHECKING:
    from pathlib import Path

HOSTS = CAPTURES / "hosts"
SIX = [*sorted(HOSTS.glob("bookworm-*.toml")), *sorted(HOSTS.glob("trixie-[an]*.toml"))]
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


def test_a_check_fits_a_terminal() -> None:
    lines = on_a_terminal(CHECK)
    assert lines[0].startswith("The guest cannot go: ")
    assert max(map(len, lines)) <= 80


def test_the_options_to_paste_fit_80_columns_everywhere_and_let_the_registers_pass() -> None:
    check = [*COMMAND, "check", str(HOSTS / "trixie-a72.toml"), "--host", str(HOSTS / "bookworm-n1.toml")]

    def said(*more: str) -> list[str]:
        done = subprocess.run([*check, *more], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.splitlines()

    options = [line.strip() for line in said() if line.startswith("    --allow-")]
    assert sum(option.startswith("--allow-register ") for option in options) > 3
    assert max(map(len, options)) <= 76
    lines = said(*(word for option in options for word in shlex.split(option)))
    assert lines[0].startswith("The guest can go through the proxy")
    assert not [line for line in lines if "--allow-" in line and line.startswith("    --")]


def test_nothing_is_advised_that_would_not_be_enough() -> None:
    """What the firmware told the guest is never lowered, and so no option for the other registers helps."""
    lines = subprocess.run(CHECK, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    assert lines[0].startswith("The guest cannot go: ")
    assert not [line for line in lines if line.startswith("    --")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", CAPTURES / "kvm-trixie-a57r3.xz", "--registers"),
        ("inspect", CAPTURES / "kvm-trixie-a57r3.xz", "--section", "pl011"),
        ("diff", CAPTURES / "kvm-trixie-a57r3.xz", CAPTURES / "kvm-bookworm-n1.xz"),
        ("policy", "check", "proxy/policy/policy_example.toml"),
        ("host", "matrix", *SIX),
    ],
    ids=lambda arguments: " ".join(map(str, arguments[::2])),
)
def test_a_terminal_has_room_for_every_line(arguments: tuple[object, ...]) -> None:
    lines = on_a_terminal([*COMMAND, *map(str, arguments)])
    assert len(lines) > 10
    assert max(map(len, lines)) <= 80


def test_a_matrix_is_a_table_where_there_is_room() -> None:
    command = [*COMMAND, "host", "matrix", *map(str, SIX)]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert table[0].startswith("from \\ to ")
    assert on_a_terminal(command, 100) == table
    narrow = on_a_terminal(command, 80)
    start = narrow.index("from bookworm-a57 to")
    assert "  trixie-a57: as it is" in narrow[start : narrow.index("from bookworm-a72 to")]
    assert " ".join(narrow[narrow.index("") :]).split() == " ".join(table[table.index("") :]).split()


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
