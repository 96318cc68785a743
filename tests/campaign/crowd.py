"""Many migrations at once through one proxy, with a fault amid them, and how many guests are left."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, suppress
from dataclasses import astuple, dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from tests.campaign.black_hole import close_black_hole
from tests.campaign.ending import runs, wait_over
from tests.campaign.faults import FAULTS, REFUSED, Scene
from tests.campaign.kinds import KINDS
from tests.campaign.leg import FORWARD, Place, open_leg
from tests.lab.proxy import running_proxy
from tests.lab.qmp import LabError
from tests.lab.vm import wire_uri

if TYPE_CHECKING:
    from pathlib import Path

    from tests.campaign.stage import Stage
    from tests.lab.vm import Vm

_STREAM = 10_000_000
"""Bytes of one migration, about."""

_BREAKING = ("reset", "half-close", "stall", "black hole", "kill proxy", "cancel")

_LOOK = 20.0
"""Seconds for which each guest is looked at: so many share the machine."""


@dataclass(frozen=True)
class CrowdRow:
    """What came of a crowd.

    Attributes:
        fault: What was done amid it.
        byte: At which byte of all migrations together.
        at_sources: Guests that run at their sources.
        at_destinations: Guests that arrived.
        killed: QEMUs that were killed with their guests, perhaps.
        reports: What the proxy reported.
        good: Whether none is lost but with its QEMU, and none there twice but in the last window, if anything broke.
    """

    fault: str
    byte: int
    at_sources: int
    at_destinations: int
    killed: int
    reports: int
    good: bool

    def __str__(self) -> str:
        return "\t".join(map(str, astuple(self)))


async def run_crowd(stage: Stage, count: int, fault: str, seed: str, small: Path) -> CrowdRow:
    """Migrate so many guests at once, with a fault at some byte."""
    rng = random.Random(seed)
    byte = rng.randrange(count * _STREAM)
    async with AsyncExitStack() as stack, open_leg() as near, open_leg() as far:
        entered = running_proxy(wire_uri(far.port), *stage.options, "--idle-ram", "0", folder=small)
        proxy = await stack.enter_async_context(entered)
        proxy.report.touch()
        destinations = [await stack.enter_async_context(stage.destination(held=False)) for _ in range(count)]
        for vm in destinations:
            await vm.listen()
        sources = [await stack.enter_async_context(stage.source(refused=False)) for _ in range(count)]
        near.begin(int(proxy.uri.rpartition(":")[2]))
        far.begin(*[await vm.incoming_port() for vm in destinations])
        async with trio.open_nursery() as nursery:
            one, other = rng.choice(sources), rng.choice(destinations)
            scene = Scene(KINDS["plain"], one, other, proxy, near, far, nursery, rng)
            near.at, near.act = Place(FORWARD, byte, of_first=False), partial(FAULTS[fault], scene)
            for vm in sources:
                with suppress(LabError):
                    await vm.migrate(wire_uri(near.port))
            for vm in sources:
                await wait_over(Scene(scene.kind, vm, other, proxy, near, far, nursery, rng), stage.patience)
            await close_black_hole()
            nursery.cancel_scope.cancel()
        there, here = await _running(destinations), await _running(sources)
        killed = len(scene.killed & {"source", "destination"})
        reports = len(proxy.reports())
        good = count - killed <= there + here <= (2 * count if fault.startswith(_BREAKING) else count)
        return CrowdRow(fault, byte, here, there, killed, reports, good)


async def _running(vms: list[Vm]) -> int:
    found: list[bool] = []

    async def look(vm: Vm) -> None:
        found.append(await runs(vm, _LOOK))

    async with trio.open_nursery() as nursery:
        for vm in vms:
            nursery.start_soon(look, vm)
    return sum(found)


CROWD_FAULTS = tuple(fault for fault in FAULTS if fault not in (REFUSED, "disk"))
"""Those that can come amid a crowd."""
