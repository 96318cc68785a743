"""The faults: what is done to a migration at one of its bytes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from tests.lab.qmp import LabError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from random import Random

    from tests.campaign.leg import Leg
    from tests.lab.proxy import Proxy
    from tests.lab.vm import Vm


@dataclass
class Scene:
    """Who takes part in a migration.

    Attributes:
        killed: Who was killed, by their names.
        rng: Chooses durations.
        at_fault: How many bytes the proxy had been given when the fault had come about.
    """

    source: Vm
    destination: Vm
    proxy: Proxy
    near: Leg
    far: Leg
    nursery: trio.Nursery
    rng: Random
    killed: set[str]
    at_fault: int | None = None


async def kill(scene: Scene, who: str) -> None:
    scene.killed.add(who)
    os.kill(_pid(scene, who), signal.SIGKILL)


async def stop_and_continue(scene: Scene, who: str) -> None:
    os.kill(_pid(scene, who), signal.SIGSTOP)
    scene.nursery.start_soon(_continue_later, _pid(scene, who), scene.rng.uniform(0.1, 2.0))


async def _continue_later(pid: int, seconds: float) -> None:
    await trio.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


async def reset(scene: Scene, which: str) -> None:
    _leg(scene, which).reset()


async def half_close(scene: Scene, which: str) -> None:
    _leg(scene, which).half_close()


async def stall(scene: Scene, which: str) -> None:
    """For a while, or until the connection is given up."""
    leg = _leg(scene, which)
    leg.stall()
    scene.nursery.start_soon(_go_on_later, leg, scene.rng.choice((0.5, 2.0, 4.0)), scene.rng.random() < 0.4)


async def _go_on_later(leg: Leg, seconds: float, for_ever: bool) -> None:
    await trio.sleep(seconds)
    if for_ever:
        leg.reset()
    leg.go_on()


async def slow(scene: Scene, which: str) -> None:
    _leg(scene, which).slow = 0.02


async def cancel(scene: Scene) -> None:
    scene.nursery.start_soon(_cancel, scene)


async def _cancel(scene: Scene) -> None:
    """The source goes on meanwhile; where its whole stream arrives all the same, it had sent that before it heard."""
    scene.at_fault = None
    with suppress(LabError):
        await scene.source.qmp("migrate_cancel")


async def signalled(scene: Scene, number: signal.Signals) -> None:
    scene.proxy.send_signal(number)


async def noise(scene: Scene) -> None:
    """What a port scan brings."""
    port = int(scene.proxy.uri.rpartition(":")[2])
    for words in (b"", b"GET / HTTP/1.0\r\n\r\n", b"QEVM", b"\x11\x22\x33\x44\0\0\0\1" + bytes(17)) * 5:
        scene.nursery.start_soon(_say, port, words)


async def _say(port: int, words: bytes) -> None:
    with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(5):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(words)
            await stream.receive_some(1)


def _pid(scene: Scene, who: str) -> int:
    return scene.proxy.pid if who == "proxy" else {"source": scene.source, "destination": scene.destination}[who].pid


def _leg(scene: Scene, which: str) -> Leg:
    return scene.near if which == "near" else scene.far


FAULTS: Mapping[str, Callable[[Scene], Awaitable[None]]] = {
    **{f"kill {who}": partial(kill, who=who) for who in ("source", "destination", "proxy")},
    **{f"stop {who}": partial(stop_and_continue, who=who) for who in ("source", "destination", "proxy")},
    **{f"reset {leg}": partial(reset, which=leg) for leg in ("near", "far")},
    **{f"half-close {leg}": partial(half_close, which=leg) for leg in ("near", "far")},
    **{f"stall {leg}": partial(stall, which=leg) for leg in ("near", "far")},
    **{f"slow {leg}": partial(slow, which=leg) for leg in ("near", "far")},
    "cancel": cancel,
    "SIGHUP": partial(signalled, number=signal.SIGHUP),
    "SIGTERM": partial(signalled, number=signal.SIGTERM),
    "noise": noise,
}
