"""docs/benchmarks.md and its chart, from what was measured."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.carriers import ROOT
from benchmarks.congestion import congestion_control

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PAGE = ROOT / "docs" / "benchmarks.md"
CHART = ROOT / "docs" / "benchmarks.svg"

HEAD = """\
# As fast as a proxy that reads nothing

Made by `make bench`. Real QEMUs migrate a real guest on one machine, over the loopback, directly and through each of
the proxies in turn (A B C ... A B C ...); the figures are medians of {rounds} rounds. vmstate-proxy parses every
record, judges every vCPU, and is given the destination's profile; the others read nothing. All of them, both QEMUs and
the kernel's copies share this machine's processors, so that a proxy's own processor time is what slows a migration
down. The guest is idle, its memory is filled beforehand, and the destination's is touched beforehand.

{machine}
"""


def write(rounds: int, sections: Iterable[str]) -> None:
    """Write the page."""
    PAGE.write_text("\n".join([HEAD.format(rounds=rounds, machine=_machine()), *sections]))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def chart(times: Mapping[str, Mapping[str, float]]) -> None:
    """Draw the total times by scenario and carrier, in seconds."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "vmstate-proxy"
    from matplotlib import pyplot

    carriers = list(dict.fromkeys(name for found in times.values() for name in found))
    figure, axes = pyplot.subplots(figsize=(10, 1.1 + 0.95 * len(times)))
    height = 0.8 / len(carriers)
    for number, carrier in enumerate(carriers):
        places = [row + number * height for row, found in enumerate(times.values()) if carrier in found]
        values = [found[carrier] for found in times.values() if carrier in found]
        bars = axes.barh(places, values, height, label=carrier, color="#d1495b" if carrier == "vmstate-proxy" else None)
        axes.bar_label(bars, fmt=" %.2f s", fontsize=7)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(times))], list(times))
    axes.invert_yaxis()
    axes.set_xlabel("seconds from migrate to completed, median")
    axes.margins(x=0.1)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(CHART, metadata={"Date": None})


def _machine() -> str:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    memory = int(_lines("/proc/meminfo")[0].split()[1]) >> 20
    cores = sum(line.startswith("processor") for line in _lines("/proc/cpuinfo"))
    versions = [_first_line(["qemu-system-aarch64", "--version"]), _first_line(["haproxy", "-v"])]
    versions.append(_first_line(["socat", "-V"], 1))
    return (
        f"The machine: {model}, {cores} processors (virtual), {memory} GiB, Linux {platform.release()}, "
        f"TCP by {congestion_control()}, Python {platform.python_version()}; {'; '.join(versions)}. "
        f"{datetime.now(UTC):%Y-%m-%d}."
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _first_line(command: list[str], number: int = 0) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return said[number].split(" (")[0].split(" - ")[0].split(" on ")[0] if len(said) > number else f"no {command[0]}"
