"""`make soak`: guests that go to and fro through one proxy for hours, and what the proxy has after each migration.

An arm64 guest goes between a cortex-a57 and a cortex-a72, with registers swapped each way, and an x86 guest between two
machines of one kind. The proxy's profile is replaced, and read anew after SIGHUP, before each migration of the former.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import trio

from tests.campaign.leg import Leg, open_leg
from tests.lab.guest import counter_guest, x86_counter_guest
from tests.lab.proxy import running_proxy
from tests.lab.qmp import LabError
from tests.lab.vm import Vm, running_vm, wire_uri
from tests.live.helpers import A57_TO_A72, learn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    Start = Callable[[int, str | None], AbstractAsyncContextManager[Vm]]

_CPUS = ("cortex-a57", "cortex-a72")
_WINDOWS = 12
_LIMIT = 60.0
_POLL = 0.02


@dataclass(frozen=True)
class Move:
    """A migration that went well.

    Attributes:
        second: When it ended, since the beginning.
        guest: arm64 or x86.
        total: Milliseconds that it took, by QEMU's word.
        downtime: Milliseconds that its guest stood, by QEMU's word.
        descriptors: The proxy's, afterwards.
        threads: The proxy's.
        resident: KiB of the proxy's memory.
    """

    second: int
    guest: str
    total: int
    downtime: int
    descriptors: int
    threads: int
    resident: int

    def __str__(self) -> str:
        return "\t".join(map(str, astuple(self)))


class Wandering:
    """A guest that goes from QEMU to QEMU.

    Args:
        start: Starts the QEMU of a turn, 0 or 1, with an -incoming.
        outcome: What the proxy is to report of each migration.
    """

    def __init__(self, start: Start, outcome: str) -> None:
        self.outcome = outcome
        self.turn = 0
        self._start = start
        self._stack = AsyncExitStack()
        self._vm: Vm | None = None

    async def begin(self) -> None:
        """Start the guest."""
        self._vm = await self._stack.enter_async_context(self._start(self.turn, None))
        await self._vm.wait_counter_moves()

    async def move(self, uri: str, leg: Leg) -> tuple[int, int]:
        """Move the guest on, and end the QEMU that it was in; return how many ms it took, and stood."""
        source, stack = self._vm, AsyncExitStack()
        assert source is not None
        self.turn = 1 - self.turn
        destination = await stack.enter_async_context(self._start(self.turn, "tcp:127.0.0.1:0"))
        old, self._stack, self._vm = self._stack, stack, destination
        async with old:
            leg.begin(await destination.incoming_port())
            await source.migrate(uri)
            outcome = await source.wait_migration()
            said = await source.qmp("query-migrate")
            if outcome.status != "completed":
                raise LabError(f"the migration ended with {outcome}")
            await destination.wait_counter_moves()
        return int(said["total-time"]), int(said["downtime"])

    async def close(self) -> None:
        """End the guest."""
        await self._stack.aclose()


@dataclass
class Lines:
    """Lines that are written to a file for hours, read one by one."""

    path: Path
    _offset: int = 0

    async def next(self, having: bytes = b"") -> bytes:
        """Wait for the next line with such words.

        Raises:
            LabError: It does not come.
        """
        with trio.move_on_after(_LIMIT):
            while True:
                with self.path.open("rb") as file:
                    file.seek(self._offset)
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        self._offset += len(line)
                        if having in line:
                            return line
                await trio.sleep(_POLL)
        raise LabError(f"{self.path.name} has no further line with {having!r}")


async def soak(minutes: float, directory: Path, tell: Callable[[Move], None]) -> list[Move]:
    """Migrate for so long.

    Raises:
        LabError: A migration went wrong.
    """
    profiles = [await learn(directory, cpu) for cpu in _CPUS]
    profile = directory / "destination.toml"
    shutil.copy(profiles[1], profile)
    image, firmware = counter_guest(touch_pages=2500), x86_counter_guest()

    def arm64(turn: int, incoming: str | None) -> AbstractAsyncContextManager[Vm]:
        return running_vm(name=f"arm64 {turn}", cpu=_CPUS[turn], guest=image, incoming=incoming)

    def x86(turn: int, incoming: str | None) -> AbstractAsyncContextManager[Vm]:
        binary = "qemu-system-x86_64"
        return running_vm(
            name=f"x86 {turn}", binary=binary, machine="pc-q35-7.2", cpu=None, bios=firmware, incoming=incoming
        )

    options = ("--host", str(profile), "--allow-midr", "none", *A57_TO_A72)
    guests = {"arm64": Wandering(arm64, "rewritten"), "x86": Wandering(x86, "unchanged")}
    moves: list[Move] = []
    async with open_leg() as leg, running_proxy(wire_uri(leg.port), *options) as proxy, AsyncExitStack() as stack:
        for guest in guests.values():
            stack.push_async_callback(guest.close)
            await guest.begin()
        log, reports = Lines(proxy.log), Lines(proxy.report)
        began = trio.current_time()
        while trio.current_time() < began + minutes * 60:
            for name, guest in guests.items():
                if name == "arm64":
                    _replace(Path(profiles[1 - guest.turn]), profile)
                    proxy.send_signal(signal.SIGHUP)
                    await log.next(b"SIGHUP: settings")
                took = await guest.move(proxy.uri, leg)
                outcome = json.loads(await reports.next())["outcome"]
                if outcome != guest.outcome:
                    raise LabError(f"the proxy reported {outcome}: {proxy.text()[-2000:]}")
                moves.append(Move(int(trio.current_time() - began), name, *took, *proxy.resources()))
                tell(moves[-1])
    return moves


def _replace(new: Path, profile: Path) -> None:
    """Replace a profile as an editor does."""
    beside = profile.with_suffix(".new")
    shutil.copy(new, beside)
    beside.rename(profile)


def summary(moves: Sequence[Move]) -> str:
    """Return a table of medians by parts of the time."""
    lines = ["| from minute | migrations | descriptors | threads | resident, KiB | arm64: ms, stood | x86: ms, stood |"]
    lines.append("|" + "---|" * 7)
    end = moves[-1].second + 1
    for window in range(_WINDOWS):
        first, last = (end * part // _WINDOWS for part in (window, window + 1))
        part = [move for move in moves if first <= move.second < last]
        if not part:
            continue
        times = []
        for name in ("arm64", "x86"):
            mine = [move for move in part if move.guest == name]
            totals, stood = ([getattr(move, key) for move in mine] or [0] for key in ("total", "downtime"))
            times.append(f"{median(totals):.0f}, {median(stood):.0f}")
        most = [max(getattr(move, key) for move in part) for key in ("descriptors", "threads", "resident")]
        lines.append("| " + " | ".join([f"{first / 60:.0f}", str(len(part)), *map(str, most), *times]) + " |")
    return "\n".join(lines)


def chart(moves: Sequence[Move], path: Path) -> None:
    """Draw what the proxy had, and how long each guest stood, minute by minute, with matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "vmstate-proxy"
    from matplotlib import pyplot

    figure, (memory, counts, stood) = pyplot.subplots(3, sharex=True, figsize=(9, 6))
    minutes = sorted({move.second // 60 for move in moves})
    by_minute = [[move for move in moves if move.second // 60 == minute] for minute in minutes]
    memory.plot(minutes, [max(move.resident for move in part) / 1024 for part in by_minute])
    memory.set_ylabel("resident, MiB, most")
    for key in ("descriptors", "threads"):
        counts.plot(minutes, [max(getattr(move, key) for move in part) for part in by_minute], label=key)
    for name in ("arm64", "x86"):
        mine = [[move.downtime for move in part if move.guest == name] or [0] for part in by_minute]
        stood.plot(minutes, [median(times) for times in mine], label=name)
    stood.set_ylabel("guest stood, ms, median")
    stood.set_xlabel("minutes")
    for axes in (memory, counts, stood):
        axes.set_ylim(bottom=0)
    for axes in (counts, stood):
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def read_moves(path: Path) -> list[Move]:
    """Read the lines that --tsv wrote."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    return [Move(int(line[0]), line[1], *map(int, line[2:])) for line in lines]


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--tsv", type=Path, help="where to write a line for each migration")
    parser.add_argument("--chart", type=Path, help="an SVG to draw of --tsv's lines; matplotlib is needed")
    parser.add_argument("--draw", action="store_true", help="only draw --chart of a --tsv that is there")
    given = parser.parse_args()
    if given.draw:
        chart(read_moves(given.tsv), given.chart)
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="vmstate-soak-") as folder,
        (given.tsv or Path(os.devnull)).open("w") as out,
    ):

        def tell(move: Move) -> None:
            print(move, file=out, flush=True)

        try:
            moves = trio.run(partial(soak, given.minutes, Path(folder), tell))
        except LabError as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
    print(f"{len(moves)} migrations in {moves[-1].second / 60:.0f} minutes; most of each part, and medians of times:\n")
    print(summary(moves))
    if given.chart is not None:
        chart(moves, given.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
