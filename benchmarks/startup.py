"""How long the program takes to start, and to look at something small, over what its interpreter takes."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.carriers import ROOT
from benchmarks.switchover import HOST, MIDR

if TYPE_CHECKING:
    from collections.abc import Callable

PYTHON = "python -c pass"
VERSION = "--version"
LISTENS = "run, until it listens"
SERVES = "run, until it serves who has connected"
INSPECT = "inspect"
CHECK = "check"
MATRIX = "host matrix of 20 profiles"
SMALL = (INSPECT, CHECK, MATRIX)
"""What people wait for."""
_PROFILES = 20
_STREAM = str(ROOT / "captures" / "kvm-trixie-a57r0.xz")
_RUN = ["-m", "proxy", "run", "--listen", "tcp:127.0.0.1:0", "--connect", "tcp:127.0.0.1:9", "--host", str(HOST)]
_LISTENING = re.compile(rb"listening on tcp:127\.0\.0\.1:(\d+), ")


def seconds(rounds: int) -> dict[str, float]:
    """Return the medians of `python -c pass`, of `--version`, of `run` until it listens, and until it serves.

    And of commands that look at something small: a recorded stream, the guest of it, a fleet's profiles.
    """
    with tempfile.TemporaryDirectory(prefix="vmstate-bench-") as folder:
        return _seconds(rounds, _profiles(Path(folder)))


def _profiles(folder: Path) -> list[str]:
    """Return profiles under names that differ; a fleet has hosts that are alike."""
    recorded = sorted((ROOT / "captures" / "hosts").glob("*.toml"))
    copies = [folder / f"host{number}.toml" for number in range(_PROFILES)]
    for copy, profile in zip(copies, cycle(recorded), strict=False):
        shutil.copy(profile, copy)
    return [str(copy) for copy in copies]


def _seconds(rounds: int, profiles: list[str]) -> dict[str, float]:
    run = [*_RUN, "--allow-midr", MIDR]
    check = ["-m", "proxy", "check", _STREAM, "--host", str(HOST), "--allow-midr", MIDR]
    commands: dict[str, Callable[[], float]] = {
        PYTHON: lambda: _whole(["-c", "pass"]),
        VERSION: lambda: _whole(["-m", "proxy", "--version"]),
        INSPECT: lambda: _whole(["-m", "proxy", "inspect", _STREAM]),
        CHECK: lambda: _whole(check),
        MATRIX: lambda: _whole(["-m", "proxy", "host", "matrix", *profiles]),
        LISTENS: lambda: _until(run, lambda _: None),
        SERVES: lambda: _until(run, _turned_away),
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            one = command()
            if number:  # the first one compiles
                taken[name].append(one)
    return {name: median(times) for name, times in taken.items()}


def _whole(arguments: list[str]) -> float:
    started = time.perf_counter()
    with _started(arguments) as process:
        process.wait()
        return time.perf_counter() - started


def _until(arguments: list[str], serves: Callable[[int], None]) -> float:
    started = time.perf_counter()
    with _started(arguments) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        listening = _LISTENING.search(line)
        assert listening, line
        serves(int(listening[1]))
        taken = time.perf_counter() - started
        process.kill()
    return taken


def _turned_away(port: int) -> None:
    """Connect and send what is no migration, until it is reset."""
    with socket.create_connection(("127.0.0.1", port)) as source, suppress(ConnectionResetError):
        source.sendall(b"no migration")
        source.recv(1)


def _started(arguments: list[str]) -> subprocess.Popen[bytes]:
    # An installed program has been compiled, too.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
