"""How a migration with a fault ends, and who has its guest then."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from tests.lab.qmp import LabError
from tests.lab.vm import LabTimeoutError

if TYPE_CHECKING:
    from tests.campaign.faults import Scene
    from tests.lab.vm import Vm

LIMIT = 60.0
"""Seconds after which a migration that is not over hangs."""

_LOOKS = (1.0, 3.0, 10.0)
"""Seconds for which both guests are looked at, until one runs."""

_FEW = 1000
_NOTICED = 5.0
_WAITS = 20.0
"""Seconds for which a destination may load its devices."""

_ANSWERS = 10.0
"""Seconds in which a monitor answers; QEMU 7.2 may be mute for good when multifd's channels are lost."""

GOOD = frozenset({"one guest", "owner killed", "last window", "package window", "recovery window", "source unaware"})
"""What may become of a guest. Of the windows, which are QEMU's own, docs/safety.md speaks:

- last: the source has sent all, and loses its connection before it hears SHUT; two run. So it can be in postcopy, too,
  also after a recovery (QEMU 10.0).
- package: a destination loses its connection when its guest is not started yet, and ends; the source is left paused.
- recovery: the same, when a paused migration is being recovered (QEMU 7.2).
- unaware: a source in postcopy that has nothing left to send does not see that its connection is gone, nor does
  migrate-pause help (QEMU 7.2); its guest runs at the destination.
"""


async def wait_over(scene: Scene, patience: float) -> str:
    """Wait until the source says that its migration is over, or paused; return QEMU's word, or `exited`, or `HANGS`."""
    status, alone, began = "", 0.0, trio.current_time()
    with trio.move_on_after(LIMIT * patience):
        while True:
            if scene.source.exited():
                return "exited"
            with suppress(LabError):
                status = str((await scene.source.qmp("query-migrate")).get("status"))
                if status in ("completed", "failed", "cancelled", "postcopy-paused"):
                    return status
                if status.startswith("postcopy"):
                    alone = await _pause_one_that_is_alone(scene, alone)
                if status == "device" and trio.current_time() - began > _WAITS * patience:
                    await _cancel_one_that_waits_for_the_mute(scene)
            await trio.sleep(0.05)
    return "HANGS"


async def _cancel_one_that_waits_for_the_mute(scene: Scene) -> None:
    """Do what an operator does with a destination that answers no more, whatever the migration waits for: cancel it.

    QEMU 7.2 and 10.0 wait for ever for a multifd channel that ended in order before its last bytes, and the source for
    them; so they do without the proxy.
    """
    if await said(scene.destination) == "mute":
        await scene.source.qmp("migrate_cancel")


async def _pause_one_that_is_alone(scene: Scene, since: float) -> float:
    """Tell a source that its connection is gone, where only the destination has noticed; return since when it has.

    QEMU 7.2 does not always see it when nothing is left to be sent.
    """
    now = trio.current_time()
    if scene.destination.exited() or await said(scene.destination) != "running/postcopy-paused":
        return now
    if since and now - since > _NOTICED:
        await scene.source.qmp("migrate-pause")
        return now
    return since or now


async def coordinate(scene: Scene, word: str) -> None:
    """Let a held guest go where it arrived for certain; end its destination where it did not."""
    with suppress(LabError), trio.move_on_after(_ANSWERS):
        if scene.source.exited():
            word = str((await scene.destination.qmp("query-migrate")).get("status"))
        if word == "completed":
            await scene.destination.qmp("cont")
        else:
            await scene.destination.kill()


async def go_on_at_source(scene: Scene, word: str) -> None:
    """Do as the proxy's report says, where a refused source of QEMU 7.2 is left stopped: `cont`.

    It is left so, too, when it is cancelled just as it goes over to postcopy.
    """
    with suppress(LabError), trio.move_on_after(_ANSWERS):
        if word in ("failed", "cancelled") and await scene.source.status() == "postmigrate":
            await scene.source.qmp("cont")


async def verdict(scene: Scene, word: str) -> str:
    """Say what became of the guest."""
    if word == "HANGS" and not scene.destination.exited():
        return "source unaware" if await _is_unaware(scene) else word
    for seconds in _LOOKS:
        here, there = await runs(scene.source, seconds), await runs(scene.destination, seconds)
        if here and there:
            # The proxy had all of the stream before, but for a few bytes, and so may have passed the device state on.
            released = scene.at_fault is None or scene.far.passed[0] - scene.at_fault < _FEW
            released = released or await _has_gone_over(scene.destination)
            # What was recovered had gone over before.
            released = released or scene.recoveries > 0
            return "last window" if released and not scene.kind.held else "TWO GUESTS"
        if here or there:
            return "one guest"
        if scene.killed & {"source", "destination"}:
            return "owner killed"
    if scene.destination.exited() and (await said(scene.source)).startswith("finish-migrate/postcopy"):
        return "recovery window" if scene.recoveries else "package window"
    return "NO GUEST"


async def _has_gone_over(destination: Vm) -> bool:
    """Tell whether a destination says that its guest came by postcopy; whoever gives up may be asking it just now."""
    for _ in range(3):
        if (word := await said(destination)) != "mute":
            return word.startswith("running/postcopy")
        await trio.sleep(1)
    return False


async def _is_unaware(scene: Scene) -> bool:
    """Tell whether a source waits in postcopy for nothing, and its guest runs at the destination."""
    if not (await said(scene.source)).startswith("finish-migrate/postcopy"):
        return False
    return (await said(scene.destination)).startswith("running/") and await runs(scene.destination, _LOOKS[-1])


async def runs(vm: Vm, seconds: float) -> bool:
    """Tell whether a guest runs: its counter moves."""
    if vm.exited():
        return False
    with suppress(LabError), trio.move_on_after(seconds + _ANSWERS):
        try:
            await vm.wait_counter_moves(seconds)
        except LabTimeoutError:
            return False
        return True
    await vm.kill()  # its monitor is mute: there is no guest that anyone could use
    return False


async def said(vm: Vm) -> str:
    """Return a QEMU's run state, and the status of its migration."""
    if vm.exited():
        return "exited"
    with suppress(LabError), trio.move_on_after(_ANSWERS):
        migration = (await vm.qmp("query-migrate")).get("status", "none")
        return f"{await vm.status()}/{migration}"
    return "exited" if vm.exited() else "mute"
