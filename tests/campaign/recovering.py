"""Migrations that are paused in postcopy, recovered through the proxy as an operator does."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from tests.lab.qmp import LabError
from tests.lab.vm import wire_uri

if TYPE_CHECKING:
    from tests.campaign.faults import Scene
    from tests.lab.vm import Vm

_PAUSES_ITSELF = 10.0


async def recover(scene: Scene, onward: int, port: int) -> None:
    """Have the destination listen at its port again, and the source go on there; what fails shows in their states."""
    scene.recoveries += 1
    await _wait_paused(scene.destination)
    for leg, target in (scene.near, onward), (scene.far, port):
        leg.go_on()
        leg.slow = 0.0
        leg.targets = [target]
    with suppress(LabError):
        await scene.destination.qmp("migrate-recover", uri=wire_uri(port))
        await scene.source.qmp("migrate", uri=wire_uri(scene.near.port), resume=True)


async def _wait_paused(vm: Vm) -> None:
    """Wait until a QEMU has noticed that the connection is gone; tell it, where it does not."""
    with suppress(LabError):
        with trio.move_on_after(_PAUSES_ITSELF):
            while (await vm.qmp("query-migrate")).get("status") != "postcopy-paused":
                await trio.sleep(0.05)
            return
        await vm.qmp("migrate-pause")
        await trio.sleep(0.5)
