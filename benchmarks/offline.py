"""How fast `vmstate-proxy rewrite` copies a stream file, next to `cp`: python -m benchmarks.offline --help."""

from __future__ import annotations

import argparse
import mmap
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.carriers import ROOT
from benchmarks.switchover import CAPTURE, HOST, MIDR
from tests.streams import RAM_EOS, RAM_ID, ram_page, ram_zero, section_end, section_part, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KINDS = ("random", "zeros")
_PART = 32 << 20
_BLOCK = "mach-virt.ram"
_SEED = 20

_AND_SAY_WHAT_IT_USED = """
import atexit, pathlib, runpy
atexit.register(lambda: print(pathlib.Path("/proc/self/status").read_text()))
runpy.run_module("proxy", run_name="__main__", alter_sys=True)
"""
"""The processes' own word is taken: ru_maxrss is never less than what the parent had."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Copies of one file, in turn.

    Attributes:
        copy: seconds of each `cp`.
        rewrite: seconds of each `vmstate-proxy rewrite`.
        resident: bytes that a rewrite had in memory at most.
    """

    copy: Sequence[float]
    rewrite: Sequence[float]
    resident: int

    @property
    def ratio(self) -> float:
        """How many times as long as `cp` a rewrite takes, by the medians."""
        return median(self.rewrite) / median(self.copy)


def make_stream(path: Path, gib: float, kind: str) -> None:
    """Write a stream of so many GiB: that of a recorded guest, but all its pages are random, or all zero records."""
    parts = short(CAPTURE)
    stream = parts.stream()
    at = stream.index(section_end(RAM_ID, RAM_EOS))
    part = section_part(RAM_ID, b"".join(_pages(kind)) + RAM_EOS)
    with path.open("wb") as file:
        file.write(stream[:at])
        for _ in range(-(-int(gib * (1 << 30)) // len(part))):
            file.write(part)
        file.write(stream[at:])


def _pages(kind: str) -> Iterator[bytes]:
    """Yield the records of one part of the section, always the same."""
    generator = random.Random(_SEED)
    length = 0
    for number in range(_PART):
        block = None if number else _BLOCK
        record = (
            ram_zero(number << 12, block)
            if kind == "zeros"
            else ram_page(number << 12, generator.randbytes(4096), block)
        )
        yield record
        length += len(record)
        if length >= _PART:
            return


def measured(folder: Path, rounds: int, gib: float = 4, kind: str = "random") -> Measured:
    """Copy and rewrite a stream file in turn, from and to a folder, with what is read in the page cache.

    The first copy of each is not counted; then either comes first in turn. Nothing is left in the folder. The memory
    that the copy is going to take is touched beforehand: a virtual machine that hands free memory back to its host
    (free page reporting) waits longer for it than for the copy.
    """
    copies: list[float] = []
    rewrites: list[float] = []
    resident = 0
    with tempfile.TemporaryDirectory(prefix="vmstate-bench-", dir=folder) as name:
        stream, out = Path(name, "stream"), Path(name, "out")
        make_stream(stream, gib, kind)
        size = stream.stat().st_size
        rewrite: list[str | Path] = [
            sys.executable,
            "-c",
            _AND_SAY_WHAT_IT_USED,
            "rewrite",
            stream,
            out,
            "--host",
            HOST,
        ]
        rewrite += ["--allow-midr", MIDR]

        def copied() -> None:
            copies.append(_seconds(["cp", stream, out], out, size)[0])

        def rewritten() -> None:
            nonlocal resident
            seconds, said = _seconds(rewrite, out, size)
            rewrites.append(seconds)
            resident = max(resident, int(re.findall(r"^VmHWM:\s+(\d+) kB$", said, re.MULTILINE)[0]) << 10)

        for number in range(1 + rounds):
            # Each comes first in every other round: what ran before leaves its mark on free memory, and on the disk.
            for run in (copied, rewritten) if number % 2 else (rewritten, copied):
                run()
    return Measured(copies[1:], rewrites[1:], resident)


def _seconds(command: Sequence[str | Path], out: Path, size: int) -> tuple[float, str]:
    """Return how long a command took that writes `out`, of that size, and what it said; what it wrote is removed."""
    # An installed program has been compiled, too.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(out.with_name("compiled"))}
    # Otherwise its writes would wait for those of the one before to reach the disk.
    os.sync()
    _touch_free_memory(size)
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stderr)
    out.unlink()
    return seconds, done.stdout


def _touch_free_memory(size: int) -> None:
    """Have the machine's host back so much of the free memory; what is in the page cache stays there."""
    free = int(re.findall(r"^MemFree:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)[0]) << 10
    length = min(size, free * 9 // 10)
    mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="has room for two such files")
    parser.add_argument("--gib", type=float, default=4, help="of the stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0], help="of the pages")
    options = parser.parse_args()
    found = measured(options.folder, options.rounds, options.gib, options.kind)
    print(f"cp       {median(found.copy):7.2f} s  of {', '.join(f'{one:.2f}' for one in found.copy)}")
    print(f"rewrite  {median(found.rewrite):7.2f} s  of {', '.join(f'{one:.2f}' for one in found.rewrite)}")
    print(f"rewrite takes {found.ratio:.2f} times as long as cp, and {found.resident / (1 << 20):.0f} MiB of memory")


if __name__ == "__main__":
    main()
