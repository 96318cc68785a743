"""One migration after the other through one proxy, each with a fault, and what became of its guest."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio

from tests.campaign.faults import FAULTS, Scene
from tests.campaign.leg import Leg, open_leg
from tests.lab.guest import counter_guest
from tests.lab.proxy import Proxy, running_proxy
from tests.lab.qmp import LabError
from tests.lab.vm import Vm, running_vm, wire_uri
from tests.live.helpers import A57_TO_A72, learn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LIMIT = 60.0
"""Seconds after which a migration that is not over hangs."""

_SETTLED = 1.0
_FEW = 1000
_PAGES = 2500
"""Pages of 4 KiB that a guest has written; more than sockets hold."""

_LAST = 70_000
"""Bytes at the end of a stream among which its device state and vmdesc are."""

GOOD = frozenset({"one guest", "owner killed", "last window"})
"""What may become of a guest; `last window` is the documented one, in which a fault lets two run."""


@dataclass(frozen=True)
class Row:
    """What came of one migration.

    Attributes:
        number: Which it was.
        fault: What was done.
        leg: On which leg's bytes it waited.
        way: Forward (0) or backward (1).
        byte: At which byte.
        verdict: What became of the guest; see `GOOD`.
        outcome: What the proxy reported; empty where it was killed.
        source: What the source said at the end.
        destination: What the destination said.
    """

    number: int
    fault: str
    leg: str
    way: int
    byte: int
    verdict: str
    outcome: str
    source: str
    destination: str

    def __str__(self) -> str:
        return "\t".join(map(str, (self.number, self.fault, self.leg, self.way, self.byte, self.verdict,
                                   self.outcome, self.source, self.destination)))  # fmt: skip


@dataclass
class Campaign:
    """A row of migrations.

    Attributes:
        rows: What came of each.
        resources: Descriptors, threads and resident KiB of the proxy that was left, at the beginning and at the end.
    """

    seed: int
    count: int
    only: Sequence[str]
    directory: Path
    tell: Callable[[Row], None] = lambda _row: None
    rows: list[Row] = field(default_factory=list)
    resources: list[tuple[int, int, int]] = field(default_factory=list)

    async def run(self) -> None:
        """Run all of them."""
        rng = random.Random(self.seed)
        profile = await learn(self.directory, "cortex-a72")
        options = ("--host", profile, "--allow-midr", "none", *A57_TO_A72, "--recovery-wait", "5")
        faults = [name for name in FAULTS if not self.only or name in self.only]
        async with open_leg() as near, open_leg() as far, AsyncExitStack() as stack:
            proxy: Proxy | None = None
            sizes = (1_000_000, 100)
            for number in range(-1, self.count):
                if proxy is None or proxy.ended:
                    proxy = await stack.enter_async_context(running_proxy(wire_uri(far.port), *options))
                    self.resources = []
                fault = None if number < 0 else faults[number % len(faults)]
                row, sizes = await self._one(number, fault, proxy, near, far, rng, sizes)
                if number >= 0:
                    self.rows.append(row)
                    self.tell(row)
                if not proxy.ended:
                    self.resources = [*self.resources[:1], proxy.resources()]

    async def _one(
        self,
        number: int,
        fault: str | None,
        proxy: Proxy,
        near: Leg,
        far: Leg,
        rng: random.Random,
        sizes: tuple[int, int],
    ) -> tuple[Row, tuple[int, int]]:
        guest = counter_guest(touch_pages=_PAGES)
        before = len(proxy.reports()) if proxy.report.exists() else 0
        async with (
            running_vm(name="source", guest=guest) as source,
            running_vm(name="destination", cpu="cortex-a72", incoming="tcp:127.0.0.1:0") as destination,
            trio.open_nursery() as nursery,
        ):
            await source.wait_counter_moves(30)
            near.begin(int(proxy.uri.rpartition(":")[2]))
            far.begin(await destination.incoming_port())
            scene = Scene(source, destination, proxy, near, far, nursery, rng, set())
            leg, way, byte = self._where(rng, sizes)
            if fault is not None:

                async def act() -> None:
                    scene.at_fault = near.passed[0]
                    await FAULTS[fault](scene)

                chosen = near if leg == "near" else far
                chosen.at, chosen.act = (way, byte), act
            await source.migrate(wire_uri(near.port))
            over = await self._wait_over(source, destination)
            await trio.sleep(_SETTLED)
            verdict = await _verdict(scene, over=over)
            said = await _said(source), await _said(destination)
            outcome = "" if proxy.ended else await _outcome(proxy, before, near)
            nursery.cancel_scope.cancel()
        row = Row(number, fault or "none", leg, way, byte, verdict, outcome, *said)
        learned = (near.passed[0], near.passed[1]) if fault is None else sizes
        return row, learned

    def _where(self, rng: random.Random, sizes: tuple[int, int]) -> tuple[str, int, int]:
        """Choose a byte: anywhere, in the device state, or on the return path."""
        leg = rng.choice(("near", "far"))
        kind = rng.random()
        if kind < 0.15:
            return leg, 1, rng.randrange(max(1, sizes[1]))
        if kind < 0.5:
            return leg, 0, rng.randrange(max(0, sizes[0] - _LAST), sizes[0])
        return leg, 0, rng.randrange(sizes[0])

    async def _wait_over(self, source: Vm, destination: Vm) -> bool:
        with trio.move_on_after(LIMIT):
            while True:
                if source.exited():
                    return True
                with suppress(LabError):
                    status = (await source.qmp("query-migrate")).get("status")
                    if status in ("completed", "failed", "cancelled"):
                        return True
                await trio.sleep(0.05)
        return False


async def _verdict(scene: Scene, *, over: bool) -> str:
    here, there = await _runs(scene.source), await _runs(scene.destination)
    if here and there:
        # The proxy had all of the stream before, but for a few bytes, and so may have passed the device state on.
        released = scene.at_fault is None or scene.far.passed[0] - scene.at_fault < _FEW
        return "last window" if released else "TWO GUESTS"
    if here or there:
        return "one guest" if over or "source" in scene.killed else "HANGS"
    if scene.killed & {"source", "destination"}:
        return "owner killed"
    return "NO GUEST" if over else "HANGS"


async def _runs(vm: Vm) -> bool:
    """Tell whether a guest runs: its counter moves."""
    if vm.exited():
        return False
    with suppress(LabError):
        await vm.wait_counter_moves(1.0)
        return True
    return False


async def _said(vm: Vm) -> str:
    if vm.exited():
        return "exited"
    with suppress(LabError):
        return await vm.status()
    return "exited"


async def _outcome(proxy: Proxy, before: int, near: Leg) -> str:
    """Return what the proxy reported of a migration; `none` where it had not come that far."""
    if near.passed[0] < 8:
        return "none"
    with trio.move_on_after(15):
        while len(proxy.reports()) <= before and not proxy.ended:
            await trio.sleep(0.05)
    reports = proxy.reports()
    return "+".join(str(one["outcome"]) for one in reports[before:]) or "NO REPORT"


def run_campaign(seed: int, count: int, only: Sequence[str], directory: Path, tell: Callable[[Row], None]) -> Campaign:
    """Run a campaign to its end."""
    campaign = Campaign(seed, count, only, directory, tell)
    trio.run(partial(campaign.run))
    return campaign
