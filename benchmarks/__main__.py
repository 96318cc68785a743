"""`make bench`: measures all and writes docs/benchmarks.md; with names of parts, measures these and writes nothing."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import trio

from benchmarks import gaps, kvm, offline, page, parser, postcopy, startup, switchover, ways
from benchmarks.carriers import (
    CARRIERS,
    DIRECT,
    HAPROXY_SPLICE,
    HAPROXY_TLS,
    OURS,
    OURS_OBSERVING,
    SETTINGS,
    SOCAT,
    SOCAT_USUAL,
)
from benchmarks.congestion import USUAL, can_be, changed_to, congestion_control
from benchmarks.goals import IMPORTS, READ_AGAIN, SHARED, SWITCHOVER, Goal
from benchmarks.migrations import Measured, Scenario, filled_memory, migrate, profile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.carriers import Carrier

SCENARIOS = (
    Scenario("2 GiB, random", 2048, "random", carriers=(*CARRIERS, OURS_OBSERVING, SOCAT_USUAL)),
    Scenario("8 GiB, zeros", 8192, "zeros"),
    Scenario("4 GiB, mixture", 4096, "mixture"),
    Scenario("2 GiB, random, multifd, 2 channels", 2048, "random", channels=2),
    Scenario("2 GiB, random, multifd, 4 channels", 2048, "random", channels=4),
    Scenario("2 GiB, random, TLS", 2048, "random", tls=True, carriers=(DIRECT, OURS, HAPROXY_TLS)),
    *(
        Scenario(
            f"{size >> 10} GiB, {content}, multifd, {channels} channels",
            size,
            content,
            channels=channels,
            detection="multifd",
            carriers=(DIRECT, OURS, HAPROXY_SPLICE),
            qemu="trixie",  # this machine's may be older than zero-page-detection
        )
        for size, content in ((8192, "zeros"), (4096, "mixture"))
        for channels in (4, 8)
    ),
)
VCPUS = (1, 8, 64, 128)
_TRIES = 8


class Bench:
    """Runs the parts, and keeps what they say for the page."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.goals: list[Goal] = []
        self.sections: list[str] = []

    async def migrations(self) -> None:
        """Real migrations, through each carrier in turn."""
        lost: dict[str, int] = {}
        with tempfile.TemporaryDirectory(prefix="vmstate-bench-") as folder:
            hosts = {qemu: await profile(Path(folder), qemu) for qemu in {scenario.qemu for scenario in SCENARIOS}}
            found = {one: await self._scenario(one, hosts[one.qemu], lost) for one in SCENARIOS}
            self.goals += [goal for scenario, medians in found.items() for goal in _goals(scenario, medians)]
            failures = ", ".join(f"{name} {count}" for name, count in lost.items()) or "none"
            self.sections.append(
                f"## Migrations\n\n{_table(found)}\n![Total times](benchmarks.svg)\n\n"
                "Times and downtime as the source's QEMU reports them; CPU seconds of the proxy, from the first byte "
                "on, for each GiB of guest memory. With TLS, vmstate-proxy and haproxy end it on one side and begin it "
                f"on the other. {SETTINGS}\n\nMigrations that failed and were tried again: {failures}. With multifd a "
                "destination before QEMU 8.0 takes the first connection for the main one; vmstate-proxy dials it "
                "first, a proxy that reads nothing cannot know. Zeros and the mixture go with multifd between QEMUs of "
                "Debian trixie, which have `zero-page-detection=multifd`.\n"
            )
            page.chart(
                {
                    scenario.name: {carrier.name: one.total for carrier, one in medians.items()}
                    for scenario, medians in found.items()
                }
            )
            if congestion_control() != USUAL and can_be(USUAL):
                say(f"the system's TCP is by {USUAL} meanwhile, in place of {congestion_control()}")
                with changed_to(USUAL):
                    self.sections.append(await self._unpaced(hosts[None]))

    async def _unpaced(self, host: Path) -> str:
        """Measure again what hangs on the system's congestion control; what is missed then is no missed goal."""
        scenarios = [one for one in SCENARIOS if one.content == "random"]
        found = {one: await self._scenario(one, host, {}) for one in scenarios}
        goals = [goal for scenario, medians in found.items() for goal in _goals(scenario, medians)]
        return (
            f"## The same with {USUAL}\n\nvmstate-proxy sends to its own machine without pacing, whatever the system "
            "has set; the others send as the system does. Most systems have cubic, which does not pace either. "
            "haproxy with splice copies nothing; what vmstate-proxy reads, which is all of the main channel, is copied "
            "once.\n\n"
            f"{_goals_table(goals)}\n{_table(found)}"
        )

    async def _scenario(self, scenario: Scenario, host: Path, lost: dict[str, int]) -> dict[Carrier, Measured]:
        """Return the medians of a scenario, for each carrier."""
        found: dict[Carrier, list[Measured]] = {carrier: [] for carrier in scenario.carriers}
        with filled_memory(scenario) as memory:
            for number in range(self.rounds + 1):
                for carrier in scenario.carriers:
                    one = await _tried(scenario, carrier, memory, host, lost)
                    if number:  # the first round warms up
                        found[carrier].append(one)
                    say(f"{scenario.name}, {carrier.name}: {one.total:.2f} s, {one.cpu:.2f} CPU s/GiB")
        return {carrier: _median(measured) for carrier, measured in found.items()}

    async def ways(self) -> None:
        """Ways to carry one connection that is read."""
        found = await trio.to_thread.run_sync(ways.measured, self.rounds)
        best = found[ways.CHOSEN]
        for name, cost in found.items():
            say(f"{name}: {cost.total:.2f} s and {cost.cpu:.2f} CPU s a GiB")
        rows = [
            [
                name,
                f"{one.total:.2f} s",
                f"{one.cpu:.2f} s",
                f"{one.total / best.total:.2f}",
                f"{one.cpu / best.cpu:.2f}",
            ]
            for name, one in found.items()
        ]
        head = ["way", "total for 1 GiB", "CPU", "total next to the chosen", "CPU next to the chosen"]
        self.sections.append(f"## Ways to carry one connection\n\n{ways.PAGE}\n\n{page.table(head, rows)}")

    async def gaps(self) -> None:
        """How long a migration stands still at most while others switch over."""
        rows = []
        for others in gaps.others():
            worst = await gaps.measured(others, self.rounds)
            middle = median(worst) * 1000
            say(f"worst gap beside {others.name}: {middle:.1f} ms")
            rows.append([others.name, f"{middle:.1f} ms", f"{max(worst) * 1000:.1f} ms"])
            if others.count == 1:
                self.goals.append(Goal(f"Worst gap of a flow beside {others.name}", middle, 20, "ms", why=SHARED))
        self.sections.append(
            "## Beside others\n\nHow long a migration that flows through the same proxy gets no bytes at most, while "
            f"others switch over.\n\n{page.table(['beside', 'median of the worst', 'worst of all'], rows)}"
        )

    async def parser(self) -> None:
        """The parser alone."""
        full, zero = (parser.gibibytes_a_second(zero=zero, rounds=9) for zero in (False, True))
        say(f"parser: {full:.0f} GiB/s of full pages, {zero:.0f} GiB/s of zero pages")
        self.goals += [
            Goal("Parser alone, full pages", full, 10, "GiB/s", at_least=True),
            Goal("Parser alone, zero pages, guest memory", zero, 20, "GiB/s", at_least=True),
        ]

    async def switchover(self) -> None:
        """The time that the device state takes."""
        rows = []
        for vmdesc in (True, False):
            for vcpus in VCPUS:
                one = switchover.grown(vcpus, vmdesc=vmdesc)
                found: dict[Carrier, list[float]] = {carrier: [] for carrier in (DIRECT, OURS, SOCAT)}
                for _ in range(3):
                    for carrier, times in found.items():
                        times += await switchover.measured(one, carrier, 7)
                medians = {carrier: median(times) * 1000 for carrier, times in found.items()}
                added = medians[OURS] - medians[DIRECT]
                words = "with" if vmdesc else "without"
                say(f"switchover, {vcpus} vCPUs, {words} vmdesc: {added:.2f} ms added")
                rows.append(
                    [f"{vcpus}, {words} vmdesc", f"{len(one.state) >> 10} KiB"]
                    + [f"{medians[carrier]:.2f} ms" for carrier in found]
                )
                what = f"Switchover, {vcpus} vCPUs, {words} vmdesc"
                self.goals.append(Goal(what, added, 1 + 0.1 * vcpus, "ms", why=SWITCHOVER))
        head = ["vCPUs", "device state", "direct", "vmstate-proxy", "socat"]
        self.sections.append(
            "## Switchover\n\nFrom the last byte of device state in to the last byte out. The streams are grown from "
            f"one of KVM; each vCPU's MIDR_EL1 is swapped on the way.\n\n{page.table(head, rows)}"
        )

    async def postcopy(self) -> None:
        """The time that a page takes which a guest waits for."""
        goals, section = await postcopy.measured(self.rounds, say)
        self.goals += goals
        self.sections.append(section)

    async def kvm(self) -> None:
        """The same where the destination's own KVM is asked, in emulated arm64 hosts."""
        goals, section = await kvm.measured(self.rounds, say)
        self.goals += goals
        self.sections.append(section)

    async def offline(self) -> None:
        """Rewriting a file, next to copying it."""
        found = await trio.to_thread.run_sync(offline.measured, Path(tempfile.gettempdir()), self.rounds)
        copy, rewrite = median(found.copy), median(found.rewrite)
        say(f"offline: cp {copy:.2f} s, rewrite {rewrite:.2f} s, {found.resident >> 20} MiB resident")
        self.goals += [
            Goal("`rewrite` of a 4 GiB stream, next to `cp`", found.ratio, 1.5, why=READ_AGAIN),
            Goal("`rewrite`: peak resident memory", found.resident / (1 << 20), 64, "MiB"),
        ]
        self.sections.append(
            f"## Offline\n\n`cp` of a stream of 4 GiB: {copy:.2f} s; `vmstate-proxy rewrite` of it: "
            f"{rewrite:.2f} s, {found.resident >> 20} MiB resident at most (in the page cache, in turn).\n"
        )

    async def startup(self) -> None:
        """The program's start."""
        taken = await trio.to_thread.run_sync(startup.seconds, 15)
        python = taken[startup.PYTHON]
        for name, seconds in taken.items():
            say(f"start-up, {name}: {seconds * 1000:.0f} ms")
        self.goals += [
            Goal(f"Start-up over the interpreter's own: {name}", (taken[name] - python) * 1000, 200, "ms", why=IMPORTS)
            for name in (startup.VERSION, startup.LISTENS)
        ]
        self.goals += [
            Goal(f"Over the interpreter's own: {name}", (taken[name] - python) * 1000, 150, "ms", why=IMPORTS)
            for name in startup.SMALL
        ]
        rows = [[name, f"{seconds * 1000:.0f} ms"] for name, seconds in taken.items()]
        self.sections.append(
            f"## Start-up\n\n{page.table(['command', 'time'], rows)}\n`run` opens its ports before it loads trio and "
            "the parser: sources can connect from then on, and are served when these are there.\n"
        )


async def main(words: Sequence[str]) -> int:
    """Measure; return 1 if a goal was missed."""
    parts = ("migrations", "ways", "gaps", "parser", "switchover", "postcopy", "kvm", "offline", "startup")
    arguments = argparse.ArgumentParser(prog="make bench")
    arguments.add_argument("parts", nargs="*", choices=[[], *parts], help="what to measure; all by default")
    arguments.add_argument("--rounds", type=int, default=7)
    options = arguments.parse_args(words)
    bench = Bench(options.rounds)
    for part in options.parts or parts:
        await getattr(bench, part)()
    goals = _goals_table(bench.goals)
    print(goals)
    if not options.parts:
        whys = dict.fromkeys(goal.why for goal in bench.goals if not goal.met)
        missed = "".join(f"\n- {why}" for why in whys)
        missed = f"\nOf what is missed:\n{missed}" if missed else ""
        page.write(options.rounds, [f"## Goals\n\n{goals}{missed}\n", *bench.sections])
    return 0 if all(goal.met for goal in bench.goals) else 1


async def _tried(scenario: Scenario, carrier: Carrier, memory: list[str], host: Path, lost: dict[str, int]) -> Measured:
    """Migrate; what fails through somebody else's proxy is tried again, and counted."""
    for _ in range(_TRIES):
        try:
            return await migrate(scenario, carrier, memory, host)
        except Exception as error:
            if carrier in (DIRECT, OURS):
                raise
            say(f"{scenario.name}, {carrier.name}: {error!r}")
            lost[carrier.name] = lost.get(carrier.name, 0) + 1
    raise RuntimeError(f"{scenario.name}, {carrier.name}: failed {_TRIES} times")


def _goals_table(goals: Sequence[Goal]) -> str:
    return page.table(["goal", "measured", "bound", "met"], [goal.row() for goal in goals])


def _table(found: Mapping[Scenario, Mapping[Carrier, Measured]]) -> str:
    head = ["what", "through", "total", "x direct", "downtime", "CPU s/GiB", "peak resident"]
    rows = [
        _row(scenario, carrier, one, medians[DIRECT])
        for scenario, medians in found.items()
        for carrier, one in medians.items()
    ]
    return page.table(head, rows)


def _median(measured: Sequence[Measured]) -> Measured:
    return Measured(
        median(one.total for one in measured),
        median(one.downtime for one in measured),
        median(one.cpu for one in measured),
        max(one.resident for one in measured),
    )


def _row(scenario: Scenario, carrier: Carrier, one: Measured, direct: Measured) -> list[str]:
    proxy = [f"{one.cpu:.3f}", f"{one.resident >> 20} MiB"] if carrier is not DIRECT else ["-", "-"]
    return [
        scenario.name,
        carrier.name,
        f"{one.total:.2f} s",
        f"{one.total / direct.total:.2f}",
        f"{one.downtime * 1000:.0f} ms",
        *proxy,
    ]


def _goals(scenario: Scenario, medians: Mapping[Carrier, Measured]) -> list[Goal]:
    """Return the goals of a scenario, as ratios to the best of the others."""

    def next_to(other: Carrier, total: float, cpu: float | None = None, ours: Carrier = OURS) -> list[Goal]:
        one, beside, who = medians[ours], medians[other], f", {ours.name.rpartition(', ')[2]}" if ours != OURS else ""
        what = f"{scenario.name}{who}"
        goals = [Goal(f"{what}: total, next to {other.name}", one.total / beside.total, total, why=SHARED)]
        if cpu is not None:
            goals.append(
                Goal(f"{what}: CPU per GiB, next to {other.name}", one.cpu / beside.cpu, cpu, why=scenario.why)
            )
        return goals

    if scenario.content == "zeros" and not scenario.channels:
        return next_to(DIRECT, 1.05)
    if scenario.tls:
        return next_to(HAPROXY_TLS, 1.0, 1.1)
    if scenario.channels:
        return next_to(HAPROXY_SPLICE, 1.0, 1.0)
    if scenario.content == "random":
        goals = [*next_to(SOCAT, 1.0, 1.0), *next_to(SOCAT, 1.0, 1.0, OURS_OBSERVING)]
        return [*goals, *next_to(SOCAT_USUAL, 0.64), *next_to(HAPROXY_SPLICE, 1.05, 2.0)]
    return []


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(trio.run(main, sys.argv[1:]))
