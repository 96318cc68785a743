"""The faults: what is done to a migration at one of its bytes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio

from tests.campaign import shortage
from tests.campaign.black_hole import close_black_hole, open_black_hole
from tests.lab.qmp import LabError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from random import Random

    from tests.campaign.kinds import Kind
    from tests.campaign.leg import Leg
    from tests.lab.proxy import Proxy
    from tests.lab.vm import Vm

REFUSED = "refused"
"""Not done at a byte: the source has a processor that the proxy lets nobody have."""

_GIVEN_UP = 3.0
"""Seconds after which an operator gives up a migration of which nothing is heard."""


@dataclass
class Scene:
    """Who takes part in a migration.

    Attributes:
        killed: Who was killed, by their names.
        rng: Chooses durations.
        at_fault: How many bytes the proxy had been given when the fault had come about; None where that is not known.
        reached: Whether the fault came.
        recoveries: How often the migration was recovered.
    """

    kind: Kind
    source: Vm
    destination: Vm
    proxy: Proxy
    near: Leg
    far: Leg
    nursery: trio.Nursery
    rng: Random
    killed: set[str] = field(default_factory=set)
    at_fault: int | None = None
    reached: bool = False
    recoveries: int = 0


async def kill(scene: Scene, who: str) -> None:
    scene.killed.add(who)
    _signal(scene, who, signal.SIGKILL)


async def stop_and_continue(scene: Scene, who: str) -> None:
    _signal(scene, who, signal.SIGSTOP)
    scene.nursery.start_soon(_continue_later, scene, who, scene.rng.uniform(0.1, 2.0))


async def _continue_later(scene: Scene, who: str, seconds: float) -> None:
    await trio.sleep(seconds)
    _signal(scene, who, signal.SIGCONT)


async def reset(scene: Scene, which: str) -> None:
    _leg(scene, which).reset()


async def half_close(scene: Scene, which: str) -> None:
    _leg(scene, which).half_close()


async def stall(scene: Scene, which: str) -> None:
    """Hold all up for a while, or until the connection is given up."""
    leg = _leg(scene, which)
    leg.stall()
    scene.nursery.start_soon(_go_on_later, leg, scene.rng.choice((0.5, 2.0, 4.0)), scene.rng.random() < 0.4)


async def _go_on_later(leg: Leg, seconds: float, for_ever: bool) -> None:
    await trio.sleep(seconds)
    if for_ever:
        leg.reset()
    leg.go_on()


async def black_hole(scene: Scene, which: str) -> None:
    """Lose all packets for a while, or until the operator gives the migration up."""
    await open_black_hole(_leg(scene, which).port)
    scene.nursery.start_soon(_close_later, scene, scene.rng.random() < 0.5)


async def _close_later(scene: Scene, for_ever: bool) -> None:
    await trio.sleep(_GIVEN_UP if for_ever else scene.rng.uniform(0.3, 2.0))
    if for_ever:
        await give_up(scene)
    await close_black_hole()


async def give_up(scene: Scene) -> None:
    """Do what an operator does: cancel, or pause both ends where the guest has gone over."""
    for vm, states in (scene.source, ("active", "device", "setup")), (scene.destination, ()):
        with suppress(LabError), trio.move_on_after(5):
            status = (await vm.qmp("query-migrate")).get("status")
            if status in ("postcopy-active", "postcopy-recover"):
                await vm.qmp("migrate-pause")
            elif status in states:
                scene.at_fault = None
                await vm.qmp("migrate_cancel")


async def slow(scene: Scene, which: str) -> None:
    _leg(scene, which).slow = 0.02


async def cancel(scene: Scene) -> None:
    scene.nursery.start_soon(give_up, scene)


async def signalled(scene: Scene, number: signal.Signals) -> None:
    scene.proxy.send_signal(number)


async def short_of(scene: Scene, what: Callable[[Proxy, float], Awaitable[None]]) -> None:
    scene.nursery.start_soon(what, scene.proxy, scene.rng.uniform(0.3, 2.0))


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


async def nothing(scene: Scene) -> None:
    """Let it be."""


def _signal(scene: Scene, who: str, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, LabError):
        if who == "proxy":
            os.kill(scene.proxy.pid, number)
        else:
            {"source": scene.source, "destination": scene.destination}[who].send_signal(number)


def _leg(scene: Scene, which: str) -> Leg:
    return scene.near if which == "near" else scene.far


_LEGS = ("near", "far")

PROXY_FAULTS = frozenset({"kill proxy", "stop proxy", REFUSED, "SIGHUP", "SIGTERM", "noise"})
PROXY_FAULTS |= {"descriptors", "memory", "disk"}
"""Those that need a proxy."""

FAULTS: Mapping[str, Callable[[Scene], Awaitable[None]]] = {
    **{f"kill {who}": partial(kill, who=who) for who in ("source", "destination", "proxy")},
    **{f"stop {who}": partial(stop_and_continue, who=who) for who in ("source", "destination", "proxy")},
    **{f"reset {leg}": partial(reset, which=leg) for leg in _LEGS},
    **{f"half-close {leg}": partial(half_close, which=leg) for leg in _LEGS},
    **{f"stall {leg}": partial(stall, which=leg) for leg in _LEGS},
    **{f"black hole {leg}": partial(black_hole, which=leg) for leg in _LEGS},
    **{f"slow {leg}": partial(slow, which=leg) for leg in _LEGS},
    "cancel": cancel,
    REFUSED: nothing,
    "SIGHUP": partial(signalled, number=signal.SIGHUP),
    "SIGTERM": partial(signalled, number=signal.SIGTERM),
    "noise": noise,
    "descriptors": partial(short_of, what=shortage.descriptors),
    "memory": partial(short_of, what=shortage.memory),
    "disk": partial(short_of, what=shortage.disk),
}
