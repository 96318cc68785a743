"""Running targets: each input in bounded time, and what fails kept."""

from __future__ import annotations

import hashlib
import random
import signal
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.fuzz.targets import Target

CORPUS = Path(__file__).parent / "corpus"
"""Inputs that once failed, or lead where nothing else does, by target; `make test` runs them all."""

FAILURES = Path(__file__).parents[2] / "build" / "fuzz"
PIECES = (1 << 20, 4096, 61, 7)
OFTEN = (60, 30, 6, 1)
"""How large the pieces are in which an input comes, and how often each; small ones take long."""

SECONDS_PER_MIB = 2.0
LEAST_SECONDS = 2.0


class TooSlow(AssertionError):
    """An input takes longer than it may."""


@dataclass
class Tally:
    """What came of some fuzzing.

    Attributes:
        runs: How many inputs each target took.
        failures: Those that failed, by the file that has the input.
        slowest: The longest that one took, in seconds, and which target it was.
    """

    runs: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")

    def __str__(self) -> str:
        lines = [f"{self.runs.total()} runs, the longest {self.slowest[0]:.2f} s ({self.slowest[1]})"]
        lines += [f"  {name:12} {count}" for name, count in sorted(self.runs.items())]
        lines += [f"FAILED {name}: {why}" for name, why in self.failures.items()]
        return "\n".join(lines)


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """Raise TooSlow in a block that takes longer than an input of that many bytes may, of processor time."""
    limit = max(LEAST_SECONDS, SECONDS_PER_MIB * size / (1 << 20))

    def late(_number: int, _frame: object) -> None:
        raise TooSlow(f"more than {limit:.1f} s for {size} bytes")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def run_one(target: Target, data: bytes, size: int) -> str | None:
    """Run a target on an input, fed in pieces of a size; return what went wrong."""
    try:
        with bounded(len(data)):
            target.run(data, size)
    except Exception:
        return traceback.format_exc()
    return None


def fuzz(
    *, seed: int, seconds: float, only: Sequence[str] = (), runs: int | None = None, keep: Path = FAILURES
) -> Tally:
    """Fuzz the targets in turn, for so long or so many runs; the same seed makes the same inputs."""
    rng, tally = random.Random(seed), Tally()
    targets = [target for target in TARGETS if not only or target.name in only]
    end = time.monotonic() + seconds
    while time.monotonic() < end and (runs is None or tally.runs.total() < runs):
        for target in targets:
            data, [size] = mutated(target.seeds(), rng, target.ways), rng.choices(PIECES, OFTEN)
            begun = time.process_time()
            problem = run_one(target, data, size)
            took = time.process_time() - begun
            tally.runs[target.name] += 1
            tally.slowest = max(tally.slowest, (took, target.name))
            if problem is not None:
                keep.mkdir(parents=True, exist_ok=True)
                name = f"{target.name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}"
                (keep / name).write_bytes(data)
                tally.failures[name] = f"pieces of {size}: {problem}"
    return tally
