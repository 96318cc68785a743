"""What QEMU can turn on, by QEMU's version: whether it passes through the proxy, is repaired, is refused by name.

Run it with `make capabilities`: it writes docs/capabilities.md. With the names of shapes, or with some of the suites,
as in `make capabilities LAB="--suites bookworm,trixie multifd"`, only these are tried, and nothing is written; with
`--again` the table is written, and has the other cells as they were the last time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lab.cache import cache_folder
from tests.lab.crossing import LOSES, cross
from tests.lab.known_qemus import Qemus, Treatment
from tests.lab.qemus import QEMUS, other_qemu
from tests.lab.qmp import LabError
from tests.lab.shapes import SHAPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.lab.shape import Shape

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "capabilities.md"

BETWEEN = (("bullseye", "bookworm"), ("bookworm", "trixie"), ("trixie", "sid"), ("sid", "bullseye"))
"""From a QEMU to another: upgrades, and one way back."""

SHAPES_BETWEEN = ("plain, with return-path", "xbzrle", "multifd", "dirty-bitmaps", "suppress-vmdesc=on")

Cell = tuple[str, str, str]
"""What came of the three treatments, in their order; the same words for those that were not tried."""

Place = tuple[str, str, str]
"""Whose they are: a shape's name, the source's Debian release, the destination's."""


async def main(words: Sequence[str]) -> int:
    """Try every shape on every QEMU; return 1 if a cell holds what must not be."""
    parser = argparse.ArgumentParser(prog="make capabilities")
    parser.add_argument("shapes", nargs="*", help="names of shapes, or parts of them; all by default")
    parser.add_argument("--suites", default=",".join(QEMUS), help="Debian releases, or SOURCE:DESTINATION")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="write the table, with the other cells of the last time")
    options = parser.parse_args(words)
    shapes = [shape for shape in SHAPES if not options.shapes or any(word in shape.name for word in options.shapes)]
    suites = options.suites.split(",")
    between = [pair for pair in BETWEEN if set(pair) <= set(suites)]
    todo = [(shape, suite, suite) for shape in shapes for suite in suites]
    todo += [(shape, *pair) for shape in shapes if shape.name in SHAPES_BETWEEN for pair in between]
    whole = not options.shapes and set(suites) == set(QEMUS)
    cells = remembered() if options.again else {}
    for suite in QEMUS:
        await trio.to_thread.run_sync(other_qemu, suite, "qemu-system-aarch64", say)
    with tempfile.TemporaryDirectory(prefix="vmstate-capabilities-") as folder:
        qemus = Qemus(Path(folder))
        limiter = trio.CapacityLimiter(options.jobs)

        async def fill(shape: Shape, here: str, there: str) -> None:
            async with limiter:
                started = trio.current_time()
                cell = await filled(qemus, shape, here, there)
                cells[shape.name, here, there] = cell
                if whole or options.again:
                    remember(cells)
                say(f"{shape.name}, {here} to {there}: {in_words(cell)} ({trio.current_time() - started:.0f} s)")

        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for item in todo:
                nursery.start_soon(fill, *item)
        missing = {suite: await untried(qemus, suite) for suite in QEMUS}
        say(f"{len(todo)} cells in {trio.current_time() - started:.0f} s")
        for suite, names in missing.items():
            if names:
                say(f"{suite}: no shape tries {', '.join(names)}")
        wrong = sum("**" in part for cell in cells.values() for part in cell) + sum(map(len, missing.values()))
        if whole or options.again:
            TABLE.write_text(table(cells, {suite: qemus.versions[suite] for suite in QEMUS}))
    return 1 if wrong else 0


async def filled(qemus: Qemus, shape: Shape, here: str, there: str) -> Cell:
    """Try a shape between two QEMUs, with each treatment."""
    results: list[str] = []
    for treatment in Treatment:
        forbidden = here != there and treatment is Treatment.FORBID  # it is refused before it can fail
        if results and (not shape.arm64 or (results[0].startswith(("QEMU", "fails")) and not forbidden)):
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
    came = dict.fromkeys(part.removesuffix(LOSES) for part in cell)
    return ", ".join(came) + (LOSES if any(part.endswith(LOSES) for part in cell) else "")


def remember(cells: dict[Place, Cell]) -> None:
    """Keep what came of all, for `--again`."""
    _memory().write_text(json.dumps([[place, cell] for place, cell in cells.items()]))


def remembered() -> dict[Place, Cell]:
    """Return what came of all the last time."""
    path = _memory()
    found = json.loads(path.read_text()) if path.exists() else []
    return {(name, here, there): (same, swap, forbid) for (name, here, there), (same, swap, forbid) in found}


def _memory() -> Path:
    return cache_folder() / "capabilities.json"


def table(cells: dict[Place, Cell], versions: dict[str, str]) -> str:
    """Return the page."""
    lines = [HEAD, row("", [f"{version} ({suite})" for suite, version in versions.items()])]
    lines += ["|---" * (len(versions) + 1) + "|"]
    lines += [row(shape.name, [found(cells, (shape.name, suite, suite)) for suite in versions]) for shape in SHAPES]
    lines += ["", BETWEEN_HEAD, row("", [f"{versions[here]} to {versions[there]}" for here, there in BETWEEN])]
    lines += ["|---" * (len(BETWEEN) + 1) + "|"]
    lines += [row(name, [found(cells, (name, *pair)) for pair in BETWEEN]) for name in SHAPES_BETWEEN]
    return "\n".join(lines) + "\n"


def found(cells: dict[Place, Cell], place: Place) -> str:
    """Return a cell's words."""
    return in_words(cells[place]) if place in cells else "not tried"


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
with them not allowed. What came of the three is said once where it is the same:

- *untouched*: what the destination received is what the source sent, and the guest goes on there.
- *repaired*: nothing but the registers is changed, and the guest goes on there.
- *refused*: the guest goes on at its source. The proxy's words follow where they are not about the registers.
- *refused; the guest stands until `cont`*: this QEMU does not resume a guest by itself that was refused after its
  migration went over to postcopy, as [safety.md](safety.md) has it. It did go on after `cont`.
- *QEMU has it not*, *QEMU refuses*, *fails without the proxy, too*: it is not for the proxy to say. RDMA would need
  hardware that was not there. QEMU 10 and newer abort with `send-configuration=off` before they have sent anything.
- *QEMU loses memory at times, without the proxy, too*: under TCG, the source did not send some pages again that its
  guest had written to since: that of QEMU 11.1 with `postcopy-ram`, and that of 5.2 with a guest that writes without
  pause. Such a guest stands still at its destination. It was tried again then, until one arrived in whole.

QEMU 11.1 says nothing of COLO in its stream. So `x-colo` is refused at the first checkpoint, when both guests run, as
COLO has it; the source's guest goes on, and the other one is to be ended.

With `release-ram`, postcopy was tried with `--source` only: without it, a guest that is refused late is lost
([safety.md](safety.md)).
"""

BETWEEN_HEAD = """\
## From one QEMU to another

Emulated processors of the same name differ between versions of QEMU. So the first two migrations of each cell were
given what `vmstate-proxy check` named, `--allow-register` and `--allow-drop`, and the third one was not. Where
registers are left out, the stream is shorter by these. The rest is QEMU's own, and no register's value mends it:

- 5.2 to 7.2 and 7.2 to 10.0: the newer one has registers that the older one does not send, some of which do not take
  the zero that it writes to them then (`write_list_to_cpustate` of `target/arm/helper.c`).
- 10.0 to 11.1, with a virtio disk that its guest does not use: 10.0 saves its queue with 1024 entries, which 11.1
  does not take.
- 11.1 to 5.2: 5.2 does not know the vCPU's subsection `cpu/wfxt-timer`, and misses registers that 11.1 does not send.
"""

if __name__ == "__main__":
    sys.exit(trio.run(main, sys.argv[1:]))
