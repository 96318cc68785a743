"""One migration after the other through one proxy, each with a fault, and what became of its guest."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, suppress
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING

import trio

from tests.campaign.black_hole import close_black_hole
from tests.campaign.ending import coordinate, go_on_at_source, said, verdict, wait_over
from tests.campaign.faults import FAULTS, REFUSED, Scene
from tests.campaign.kinds import AT_RECOVERY, KINDS, LATER, Kind, Sizes, measure, place
from tests.campaign.leg import FORWARD, Leg, open_leg
from tests.campaign.recovering import recover
from tests.lab.proxy import Proxy, running_proxy
from tests.lab.qmp import LabError
from tests.lab.vm import wire_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.campaign.stage import Stage

_SETTLED = 0.3
_SLOWLY = 12 << 20
"""Bytes a second until a migration is told to go over to postcopy."""

_BEGUN = 400_000
_MOST_RECOVERIES = 3
_AGAIN = 0.25
"""How many of the guests that stayed at their sources are migrated again."""


@dataclass(frozen=True)
class Row:
    """What came of one migration.

    Attributes:
        number: Which it was.
        kind: How it was done.
        fault: What was done to it.
        phase: When.
        leg: On which leg's bytes it waited.
        byte: At which byte; of the way back, where the phase says so.
        reached: Whether it came to that.
        verdict: What became of the guest; see `tests.campaign.ending.GOOD`.
        outcome: What the proxy reported; empty where it was killed.
        source: What the source said at the end.
        destination: What the destination said.
        recoveries: How often the migration was recovered.
        again: Whether a guest that had stayed went afterwards: yes, NO; empty where it was not asked to.
        seconds: How long it took.
        log: What the proxies and the QEMUs wrote meanwhile.
    """

    number: int
    kind: str
    fault: str
    phase: str
    leg: str
    byte: int
    reached: bool
    verdict: str
    outcome: str
    source: str
    destination: str
    recoveries: int
    again: str
    seconds: float
    log: str

    def __str__(self) -> str:
        return "\t".join(map(str, astuple(self)[:-1]))


@dataclass
class Campaign:
    """A row of migrations.

    Attributes:
        small: A folder on a small file system, for the proxy's log and report; it can be filled.
        direct: Whether the migrations go past the proxy, to see what QEMU does by itself.
        rows: What came of each.
        resources: Descriptors, threads and resident KiB of the proxy that was left, at the beginning and at the end.
    """

    stage: Stage
    seed: int
    count: int
    small: Path
    faults: Sequence[str] = tuple(FAULTS)
    kinds: Sequence[str] = tuple(KINDS)
    tell: Callable[[Row], None] = lambda _row: None
    direct: bool = False
    rows: list[Row] = field(default_factory=list)
    resources: list[tuple[int, int, int]] = field(default_factory=list)
    _sizes: dict[str, Sizes] = field(default_factory=dict)

    async def run(self) -> None:
        """Run all of them."""
        rng = random.Random(self.seed)
        async with open_leg() as near, open_leg() as far, AsyncExitStack() as stack:
            proxies = Proxies(self, stack, far)
            for name in self.kinds:
                await self._one(-1, KINDS[name], None, proxies, near, random.Random(0))
            # Each fault meets each kind, in an order of the seed.
            pairs = [(kind, fault) for kind in self.kinds for fault in self.faults]
            for number in range(self.count):
                if number % len(pairs) == 0:
                    rng.shuffle(pairs)
                kind, fault = pairs[number % len(pairs)]
                row = await self._one(number, KINDS[kind], fault, proxies, near, random.Random(f"{self.seed}/{number}"))
                self.rows.append(row)
                self.tell(row)

    async def _one(
        self, number: int, kind: Kind, fault: str | None, proxies: Proxies, near: Leg, rng: random.Random
    ) -> Row:
        began, far, proxy = trio.current_time(), proxies.far, await proxies.running()
        before, said_before = len(proxy.reports()), len(proxy.text())
        async with (
            self.stage.source(refused=fault == REFUSED) as source,
            self.stage.destination(held=kind.held) as destination,
            trio.open_nursery() as nursery,
        ):
            await destination.listen(capabilities=kind.capabilities, parameters=kind.parameters)
            await source.wait_counter_moves()
            port = await destination.incoming_port()
            near.begin(self._onward(proxy, far))
            far.begin(port)
            scene = Scene(kind, source, destination, proxy, near, far, nursery, rng)
            phase, leg = rng.choice(kind.phases), rng.choice(("near", "far"))
            if fault is None:
                near.recorded = bytearray()
            byte = await self._migrate(scene, fault, phase, leg, port, proxies)
            word = await self._over(scene, fault, phase, leg, port, proxies)
            if kind.held:
                await coordinate(scene, word)
            await go_on_at_source(scene, word)
            await trio.sleep(_SETTLED * self.stage.patience)
            words = await said(source), await said(destination)
            found = await verdict(scene, word)
            again = ""
            if found == "one guest" and words[0].startswith("running") and fault != REFUSED and rng.random() < _AGAIN:
                again = await self._again(scene, proxies)
            outcome = (
                ""
                if scene.proxy.ended or self.direct
                else await _outcome(scene.proxy, before if scene.proxy is proxy else None, near)
            )
            if fault is None:
                self._sizes[kind.name] = measure(near)
            logs = (proxy.text()[said_before:], "" if scene.proxy is proxy else scene.proxy.text())
            log = "".join((*logs, *(vm.stderr_text() for vm in (source, destination))))
            if scene.proxy is proxies.proxy:
                await proxies.note_resources(self)
            await close_black_hole()
            nursery.cancel_scope.cancel()
        took = round(trio.current_time() - began, 1)
        came = fault == REFUSED or scene.reached
        plan = (number, kind.name, fault or "none", phase, leg, byte)
        return Row(*plan, came, found, outcome, *words, scene.recoveries, again, took, log)

    def _onward(self, proxy: Proxy, far: Leg) -> int:
        """Return the port that the first leg leads to."""
        return far.port if self.direct else int(proxy.uri.rpartition(":")[2])

    def _arm(self, scene: Scene, fault: str | None, phase: str, leg: str) -> int:
        """Have the fault wait for its byte, and return which that is."""
        chosen = scene.near if leg == "near" else scene.far
        if fault is None or scene.kind.name not in self._sizes:
            return 0
        where = place(phase, self._sizes[scene.kind.name], scene.rng, chosen.passed, chosen.first_passed)

        async def act() -> None:
            scene.reached = True
            scene.at_fault = scene.near.passed[FORWARD]
            await FAULTS[fault](scene)

        chosen.at, chosen.act = where, act
        return where.byte

    async def _migrate(self, scene: Scene, fault: str | None, phase: str, leg: str, port: int, proxies: Proxies) -> int:
        kind, byte = scene.kind, 0
        if phase not in LATER | AT_RECOVERY:
            byte = self._arm(scene, fault, phase, leg)
        later = _SLOWLY if kind.breaks else 0
        slowly = {"max-bandwidth": _SLOWLY, "max-postcopy-bandwidth": later} if kind.postcopy else {}
        uri = wire_uri(scene.near.port)
        with suppress(LabError):
            await scene.source.migrate(uri, capabilities=kind.capabilities, parameters={**kind.parameters, **slowly})
            if kind.postcopy and await self._begun(scene):
                if phase in LATER:
                    byte = self._arm(scene, fault, phase, leg)
                await scene.source.qmp("migrate-start-postcopy")
                if kind.breaks:
                    await self._break_in_postcopy(scene)
        return byte

    async def _begun(self, scene: Scene) -> bool:
        """Wait until some of the memory is over; tell whether the migration still goes on."""
        with trio.move_on_after(20 * self.stage.patience):
            while scene.near.first_passed[FORWARD] < _BEGUN and not scene.reached:
                if (await scene.source.qmp("query-migrate")).get("status") in ("failed", "completed"):
                    return False
                await trio.sleep(0.02)
        # A source that is told to while it is being refused is left in between; see docs/campaign.md.
        await trio.sleep(1.0 if scene.reached else 0.0)
        return True

    async def _break_in_postcopy(self, scene: Scene) -> None:
        with trio.move_on_after(20 * self.stage.patience):
            while (await scene.destination.qmp("query-status"))["status"] == "inmigrate":
                await trio.sleep(0.005)

        async def act() -> None:
            scene.near.reset()

        if sizes := self._sizes.get(scene.kind.name):
            near = scene.near
            near.at, near.act = place("recovery", sizes, scene.rng, near.passed, near.first_passed), act

    async def _over(self, scene: Scene, fault: str | None, phase: str, leg: str, port: int, proxies: Proxies) -> str:
        """Wait for the end, over recoveries where it needs any."""
        word = await wait_over(scene, self.stage.patience)
        while word == "postcopy-paused" and not scene.destination.exited() and scene.recoveries < _MOST_RECOVERIES:
            if phase in AT_RECOVERY and not scene.reached:
                self._arm(scene, fault, phase, leg)
            await close_black_hole()
            scene.proxy = await proxies.running()
            await recover(scene, self._onward(scene.proxy, scene.far), port)
            await trio.sleep(0.2)
            word = await wait_over(scene, self.stage.patience)
        return word

    async def _again(self, scene: Scene, proxies: Proxies) -> str:
        """Migrate a guest that stayed where it was, with no fault."""
        await close_black_hole()
        scene.proxy = await proxies.running()
        async with self.stage.destination(held=False) as destination:
            await destination.listen(capabilities=scene.kind.capabilities, parameters=scene.kind.parameters)
            scene.near.begin(self._onward(scene.proxy, scene.far))
            scene.far.begin(await destination.incoming_port())
            try:
                await scene.source.migrate(wire_uri(scene.near.port))
                outcome = await scene.source.wait_migration()
                await destination.wait_counter_moves()
            except LabError as error:
                return f"NO: {error}"
            return "yes" if outcome.status == "completed" else f"NO: {outcome.error}"


class Proxies:
    """The proxy through which all goes, and another one where that has ended.

    Attributes:
        far: The leg that it leads to.
    """

    def __init__(self, campaign: Campaign, stack: AsyncExitStack, far: Leg) -> None:
        self.far = far
        self.proxy: Proxy | None = None
        self._campaign = campaign
        self._stack = stack

    async def running(self) -> Proxy:
        """Return a proxy that runs."""
        if self.proxy is not None:
            with trio.move_on_after(0.1):
                await self.proxy.wait_exit()  # one that was told to end
        if self.proxy is None or self.proxy.ended:
            options = (*self._campaign.stage.options, "--recovery-wait", "6", "--idle-ram", "8", "--idle-state", "8")
            entered = running_proxy(wire_uri(self.far.port), *options, folder=self._campaign.small)
            self.proxy = await self._stack.enter_async_context(entered)
            self.proxy.report.touch()
            self._campaign.resources = []
        return self.proxy

    async def note_resources(self, campaign: Campaign) -> None:
        """Note what the proxy has now that the migration is over."""
        if self.proxy is not None and not self.proxy.ended:
            with suppress(OSError):
                campaign.resources = [*campaign.resources[:1], self.proxy.resources()]


async def _outcome(proxy: Proxy, before: int | None, near: Leg) -> str:
    """Return what the proxy reported of a migration, which another one may have begun: `before` is None then.

    It is `none` where the migration had not come that far.
    """
    if before is None:
        return "+".join(str(one["outcome"]) for one in proxy.reports())
    if near.passed[FORWARD] < 8:
        return "none"
    with trio.move_on_after(15):
        while len(proxy.reports()) <= before and not proxy.ended:
            await trio.sleep(0.05)
    return "+".join(str(one["outcome"]) for one in proxy.reports()[before:]) or "NO REPORT"
