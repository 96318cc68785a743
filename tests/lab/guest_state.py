"""Whether a guest runs and counts on, and what its QEMU said last."""

from __future__ import annotations

import trio

from tests.lab.qmp import LabError
from tests.lab.vm import LabTimeoutError, Vm, VmExitedError

LIMIT = 60.0
"""Seconds for one migration; the machine may have other things to do."""

POLL = 0.02
STILL = 10.0
"""Seconds that a guest may stand still where it should run."""


async def counts_beyond(vm: Vm, left: int) -> bool:
    """Wait until the guest counts on from where it was; what it shows before may be a page that was sent early."""
    try:
        with trio.move_on_after(LIMIT):
            while await vm.status() != "running":
                await trio.sleep(POLL)
        last, moved = await vm.counter(), trio.current_time()
        while last <= left and trio.current_time() - moved < STILL:
            await trio.sleep(POLL)
            now = await vm.counter()
            last, moved = now, trio.current_time() if now != last else moved
        if last > left:
            await vm.wait_counter_moves(LIMIT)
    except LabError:
        return False
    return last > left


async def last_words(destination: Vm) -> str:
    """Return what a destination said if it has ended, or is about to."""
    try:
        await destination.wait_exit(STILL / 5)
    except LabTimeoutError:
        return ""
    return destination.stderr_text()


async def is_running(vm: Vm) -> bool:
    try:
        with trio.fail_after(LIMIT):
            return await vm.status() == "running"
    except VmExitedError:
        return False


async def runs(vm: Vm) -> bool:
    try:
        await vm.wait_counter_moves(LIMIT / 4)
    except LabError:
        return False
    return await vm.status() == "running"
