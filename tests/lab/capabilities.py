"""What QEMU can turn on, by QEMU's version: whether it passes through the proxy, is repaired, is refused by name.

Run it with `make capabilities`, or `make capabilities LAB="--suites bookworm,trixie"`: it writes docs/capabilities.md.
With the names of shapes, only these are tried, and nothing is written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lab.crossing import NOT_THERE, Qemus, Treatment, cross
from tests.lab.qemus import QEMUS, other_qemu
from tests.lab.qmp import LabError
from tests.lab.shapes import SHAPES, Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "capabilities.md"

BETWEEN = (("bullseye", "bookworm"), ("bookworm", "trixie"), ("trixie", "sid"), ("sid", "bullseye"))
"""From a QEMU to another: upgrades, and one way back."""

SHAPES_BETWEEN = ("plain, with return-path", "xbzrle", "multifd", "dirty-bitmaps", "suppress-vmdesc=on")

Cell = tuple[str, str, str]
"""What came of the three treatments, in their order; the same words for those that were not tried."""


async def main(words: Sequence[str]) -> int:
    """Try every shape on every QEMU; return 1 if a cell holds what must not be."""
    parser = argparse.ArgumentParser(prog="make capabilities")
    parser.add_argument("shapes", nargs="*", help="names of shapes, or parts of them; all by default")
    parser.add_argument("--suites", default=",".join(QEMUS), help="Debian releases, or SOURCE:DESTINATION")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(words)
    shapes = [shape for shape in SHAPES if not options.shapes or any(word in shape.name for word in options.shapes)]
    suites = options.suites.split(",")
    between = [pair for pair in BETWEEN if set(pair) <= set(suites)]
    todo = [(shape, suite, suite) for shape in shapes for suite in suites]
    todo += [(shape, *pair) for shape in shapes if shape.name in SHAPES_BETWEEN for pair in between]
    cells: dict[tuple[str, str, str], Cell] = {}
    for suite in suites:
        await trio.to_thread.run_sync(other_qemu, suite, "qemu-system-aarch64", say)
    with tempfile.TemporaryDirectory(prefix="vmstate-capabilities-") as folder:
        qemus = Qemus(Path(folder))
        limiter = trio.CapacityLimiter(options.jobs)

        async def fill(shape: Shape, here: str, there: str) -> None:
            async with limiter:
                started = trio.current_time()
                cell = await filled(qemus, shape, here, there)
                cells[shape.name, here, there] = cell
                say(f"{shape.name}, {here} to {there}: {in_words(cell)} ({trio.current_time() - started:.0f} s)")

        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for item in todo:
                nursery.start_soon(fill, *item)
        missing = {suite: await untried(qemus, suite) for suite in suites}
        say(f"{len(cells)} cells in {trio.current_time() - started:.0f} s")
        for suite, names in missing.items():
            if names:
                say(f"{suite}: no shape tries {', '.join(names)}")
        wrong = sum("**" in part for cell in cells.values() for part in cell) + sum(map(len, missing.values()))
        if not options.shapes:
            write(cells, {suite: qemus.versions[suite] for suite in suites}, between)
    return 1 if wrong else 0


async def filled(qemus: Qemus, shape: Shape, here: str, there: str) -> Cell:
    """Try a shape between two QEMUs, with each treatment."""
    results: list[str] = []
    for treatment in Treatment:
        if results and (not shape.arm64 or results[0] == NOT_THERE or results[0].startswith(("QEMU", "fails"))):
            results.append(results[0])
            continue
        try:
            results.append(await cross(qemus, shape, here, there, treatment))
        except LabError as error:
            results.append(f"**{str(error).strip().splitlines()[-1]}**")
    same, swap, forbid = results
    return same, swap, forbid


async def untried(qemus: Qemus, suite: str) -> list[str]:
    """Return the capabilities that a QEMU has and that no shape turns on."""
    tried = {name for shape in SHAPES for name in (*shape.capabilities, *shape.source_capabilities)}
    return sorted(await qemus.capabilities(suite) - tried - {"return-path"})


def in_words(cell: Cell) -> str:
    """What came of the three treatments, each said once."""
    return ", ".join(dict.fromkeys(cell))


def write(
    cells: dict[tuple[str, str, str], Cell], versions: dict[str, str], between: Sequence[tuple[str, str]]
) -> None:
    """Write the table."""
    lines = [HEAD, row("", [f"{version} ({suite})" for suite, version in versions.items()])]
    lines += ["|---" * (len(versions) + 1) + "|"]
    lines += [row(shape.name, [in_words(cells[shape.name, suite, suite]) for suite in versions]) for shape in SHAPES]
    if between:
        lines += ["", "## From one QEMU to another", ""]
        lines += [row("", [f"{versions[here]} to {versions[there]}" for here, there in between])]
        lines += ["|---" * (len(between) + 1) + "|"]
        lines += [row(name, [in_words(cells[name, *pair]) for pair in between]) for name in SHAPES_BETWEEN]
    TABLE.write_text("\n".join(lines) + "\n")


def row(first: str, others: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join([first, *others]) + " |"


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, flush=True)


HEAD = """\
# What passes: capabilities and versions of QEMU

Made by `make capabilities`. Each cell is three migrations of a running guest between two real QEMUs (TCG) through the
proxy: to the same processor; from a cortex-a57 to a cortex-a72, with the registers that differ allowed; and the same
with them not allowed. What came of the three is said once where it is the same: *untouched* (what the destination
received is what the source sent, and the guest goes on), *repaired* (changed, and the guest goes on there), *refused*
(the guest goes on at its source; the proxy's words, where they are not about the registers). Where a migration fails
through the proxy it was tried without one, too.
"""

if __name__ == "__main__":
    sys.exit(trio.run(main, sys.argv[1:]))
