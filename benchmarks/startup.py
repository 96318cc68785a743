"""How long the program takes to start, over what its interpreter takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from statistics import median

from benchmarks.carriers import ROOT
from benchmarks.switchover import HOST, MIDR

_NOTHING = ["-c", "pass"]
_VERSION = ["-m", "proxy", "--version"]
_RUN = ["-m", "proxy", "run", "--listen", "tcp:127.0.0.1:0", "--connect", "tcp:127.0.0.1:9", "--host", str(HOST)]


def seconds(rounds: int) -> dict[str, float]:
    """Return the medians of `python -c pass`, of `--version`, and of `run` until it listens."""
    commands = {
        "python -c pass": _NOTHING,
        "--version": _VERSION,
        "run, until it listens": [*_RUN, "--allow-midr", MIDR],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, arguments in commands.items():
            one = _one(arguments, listens=arguments is not _NOTHING and "run" in arguments)
            if number:  # the first one compiles
                taken[name].append(one)
    return {name: median(times) for name, times in taken.items()}


def _one(arguments: list[str], *, listens: bool) -> float:
    # An installed program has been compiled, too.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process:
        assert process.stderr is not None
        if listens:
            line = process.stderr.readline()
            assert b"listening on" in line, line
        else:
            process.wait()
        taken = time.perf_counter() - started
        process.kill()
    return taken
