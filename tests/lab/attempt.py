"""One migration of a running guest in one shape, through the proxy or without it."""

from __future__ import annotations

import functools
import json
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests.lab.guest import counter_guest
from tests.lab.guest_state import LIMIT, POLL, STILL, counts_beyond, is_running, last_words, runs
from tests.lab.known_qemus import SOURCE_CPU, VOUCH, Qemus, Treatment
from tests.lab.proxy import Proxy, running_proxy, vmstate_proxy
from tests.lab.qemu_words import KILLED, brief
from tests.lab.qmp import LabError
from tests.lab.shape import Shape, Sides
from tests.lab.shape_acts import make_disks
from tests.lab.stream_difference import DEVICE_STATE, differing, main_channel, same
from tests.lab.tap import open_tap
from tests.lab.vm import LabTimeoutError, Vm, VmExitedError, running_vm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.lab.tap import Tap


_WHOLE_LIMIT = 150.0
"""Seconds for it with both guests' start and end: also a QEMU that does not answer its monitor is left behind."""


_SWAPS = ("--allow-register", "ID_MMFR0_EL1,ID_MMFR0", "--allow-loss", "any")


@dataclass
class Attempt:
    """What came of one migration.

    Attributes:
        arrived: whether the guest runs at the destination.
        words: why it did not, as the source, the proxy or the lab said it.
        report: the proxy's.
        problem: what must not be, whatever came of it: a guest that is lost, or in two places.
        stands: whether the guest went on at the source only when it was told to, by `cont`.
        memory_lost: whether all has come to the destination, and its guest stands still, as it does when its memory is
            not what its registers say.
        untouched: whether every connection brought just what went into it, both ways.
        differing: how many bytes of the main channel differ; None when its length does, too.
        shorter: by how many bytes it is shorter after the proxy.
        local: whether all that differs lies within the bytes of one device state.
    """

    arrived: bool = False
    words: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    stands: bool = False
    memory_lost: bool = False
    untouched: bool = False
    differing: int | None = None
    shorter: int = 0
    local: bool = False

    def compare(self, before: bytes, after: bytes) -> None:
        """Note how the main channel differs after the proxy."""
        self.differing = differing(before, after)
        self.shorter = len(before) - len(after)
        self.local = len(before) - same(before, after) - same(before[::-1], after[::-1]) < DEVICE_STATE


def _alone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        [error] = error.exceptions
    return error


async def attempted(
    qemus: Qemus, shape: Shape, here: str, there: str, treatment: Treatment, *, proxied: bool = True
) -> Attempt:
    """Run one migration in a shape.

    Raises:
        QmpError: a QEMU refuses a capability, a parameter, or the migration itself.
        VmExitedError: a QEMU refuses its arguments.
        LabError: what was turned on did not show itself, so that nothing was tried.
    """
    machine = await qemus.machine(here, shape.machine)
    options = [*VOUCH, *shape.options]
    if shape.arm64:
        options += ["--host", await qemus.profile(there, machine, treatment.cpu)]
        if here != there and treatment is not Treatment.FORBID:
            options += await qemus.allowances(here, there, machine, treatment.cpu)
        elif treatment is Treatment.SWAP:
            options += _SWAPS
        if shape.known:
            options += ["--source", await qemus.profile(here, machine, SOURCE_CPU)]
    else:
        options += ["--midr", "0x411fd073"]
    with tempfile.TemporaryDirectory(prefix="vmstate-lab-") as name:
        folder = Path(name)
        run = _Run(shape, here, there, treatment, machine + shape.properties, folder, options, proxied)
        try:
            with trio.move_on_after(_WHOLE_LIMIT):
                return await (run.over_tcp() if shape.via == "tcp" else run.over_a_file())
        except BaseExceptionGroup as group:
            raise _alone(group) from group  # what a tap's nursery has wrapped
        return Attempt(problem=f"hangs: not over within {_WHOLE_LIMIT:.0f} s")


@dataclass
class _Run:
    shape: Shape
    here: str
    there: str
    treatment: Treatment
    machine: str
    folder: Path
    options: list[str]
    proxied: bool

    def __post_init__(self) -> None:
        self._folders = {side: self.folder / side for side in ("source", "destination", "before", "after")}
        for path in self._folders.values():
            path.mkdir()
        make_disks(self._folders["source"], self._folders["destination"])

    async def over_tcp(self) -> Attempt:
        shape = self.shape
        async with AsyncExitStack() as stack:
            source, destination = await self._pair(stack)
            await destination.listen(capabilities=shape.capabilities, parameters=shape.parameters)
            await source.wait_counter_moves(LIMIT)
            after = await stack.enter_async_context(open_tap(await destination.incoming_port(), self._folders["after"]))
            before, proxy = after, None
            if self.proxied:
                proxy = await stack.enter_async_context(running_proxy(after.uri, *self.options, "--once"))
                port = int(proxy.uri.rpartition(":")[2])
                before = await stack.enter_async_context(open_tap(port, self._folders["before"]))
            sides = Sides(source, destination, after, self._folders["source"], self._folders["destination"])
            if shape.prepare:
                await shape.prepare(sides)
            await source.migrate(
                f"{shape.scheme}:127.0.0.1:{before.port}",
                return_path=shape.return_path,
                capabilities={**shape.capabilities, **shape.source_capabilities},
                parameters={**shape.parameters, **shape.source_parameters},
            )
            return await self._watched(sides, before, after, proxy)

    async def _watched(self, sides: Sides, before: Tap, after: Tap, proxy: Proxy | None) -> Attempt:
        """Follow a migration to its end, and look where the guest is then."""
        shape, source, destination = self.shape, sides.source, sides.destination
        attempt = Attempt()
        try:
            if shape.drive:
                await shape.drive(sides)
            outcome = await source.wait_migration(LIMIT)
        except VmExitedError as error:
            if KILLED in error.stderr:
                raise
            return Attempt(words=f"{error.name} exits with {error.returncode}: {brief(error.stderr)}")
        except LabTimeoutError as error:
            last = "".join(proxy.text().strip().splitlines()[-1:]) if proxy else ""
            return Attempt(words=str(error), problem=f"hangs: {brief(str(error))} {brief(last)}".strip())
        attempt.words = outcome.error
        if outcome.status != "completed" and (said := await last_words(destination)):
            attempt.words = said
        if outcome.status == "completed":
            left = await source.counter()
            if shape.arrive:
                await shape.arrive(sides)
            refused = proxy is not None and not shape.return_path and await _gave_up(proxy)
            if refused:
                # The source was not told; its guest is still there, and stopped.
                await source.qmp("cont")
                attempt.problem = "" if await runs(source) else "lost"
            else:
                attempt.arrived = await counts_beyond(destination, left)
                if not attempt.arrived:
                    attempt.memory_lost = not destination.exited() and await destination.status() == "running"
                    attempt.problem = f"lost: {brief(destination.stderr_text())}"
                if await source.status() == "running":
                    attempt.problem = "the guest runs twice"
        elif not await _goes_on(attempt, source):
            attempt.problem = f"lost: the source is {await source.status()}"
        elif await is_running(destination):
            attempt.problem = "the guest runs twice"
        if proxy is not None:
            if after is not before and not before.recordings:
                return attempt  # the source did not come to the proxy
            await proxy.wait_exit(LIMIT)
            [attempt.report] = proxy.reports()
            if attempt.report["outcome"] == "refused" or not attempt.words:
                attempt.words = attempt.report["reason"] or attempt.words
        if attempt.arrived:
            for recording in (*before.recordings, *after.recordings):
                await recording.wait(LIMIT)
            _compare(attempt, before, after)
            if shape.check and self.proxied:
                await shape.check(sides)
        return attempt

    async def over_a_file(self) -> Attempt:
        """Save to a file while the guest runs, rewrite the file, and load it."""
        shape = self.shape
        saved, moved = self.folder / "saved", self.folder / "moved"
        attempt = Attempt()
        async with AsyncExitStack() as stack:
            source, destination = await self._pair(stack)
            await source.wait_counter_moves(LIMIT)
            await source.migrate(
                shape.via.format(path=saved, redirection=">"),
                return_path=shape.return_path,
                capabilities={**shape.capabilities, **shape.source_capabilities},
                parameters={**shape.parameters, **shape.source_parameters},
            )
            outcome = await source.wait_migration(LIMIT)
            if outcome.status != "completed":
                return Attempt(words=outcome.error, problem="" if await runs(source) else "lost")
            if "background-snapshot" in shape.source_capabilities:
                await source.wait_counter_moves(LIMIT)
            if self.proxied:
                report = self.folder / "report"
                options = [*self.options, "--report", str(report)]
                code, _ = await vmstate_proxy("rewrite", str(saved), str(moved), *options)
                attempt.report = json.loads(report.read_text())
                attempt.words = attempt.report["reason"] or ""
                if code:
                    attempt.problem = "a file that is refused is left behind" if moved.exists() else ""
                    return attempt
                before, after = saved.read_bytes(), moved.read_bytes()
                attempt.untouched = before == after
                attempt.compare(before, after)
            else:
                moved = saved
            await destination.listen(
                shape.via.format(path=moved, redirection="<"), shape.capabilities, shape.parameters
            )
            try:
                attempt.arrived = bool(await destination.wait_counter_moves(LIMIT))
            except LabError as error:
                attempt.words = str(error)
                return attempt
            if shape.check:
                sides = Sides(source, destination, None, self._folders["source"], self._folders["destination"])
                await shape.check(sides)
        return attempt

    async def _pair(self, stack: AsyncExitStack) -> tuple[Vm, Vm]:
        shape = self.shape
        run = functools.partial(running_vm, machine=self.machine, smp=shape.smp, bios=shape.bios)
        if shape.bios is not None:
            run = functools.partial(run, binary="qemu-system-x86_64")
        guest = counter_guest(shape.pages, 20 if shape.dirty else 23, dirty=shape.dirty) if shape.arm64 else None
        arm64 = shape.arm64
        source = await stack.enter_async_context(
            run(
                name="source",
                qemu=self.here,
                cpu=SOURCE_CPU if arm64 else None,
                guest=guest,
                extra=self._extra("source"),
            )
        )
        destination = await stack.enter_async_context(
            run(
                name="destination",
                qemu=self.there,
                cpu=self.treatment.cpu if arm64 else None,
                incoming="defer",
                extra=self._extra("destination"),
            )
        )
        return source, destination

    def _extra(self, side: str) -> list[str]:
        return [word.format(folder=self._folders[side], shared=self.folder) for word in self.shape.extra]


async def _gave_up(proxy: Proxy) -> bool:
    """Wait for the proxy's end; tell whether it let the guest pass."""
    return await proxy.wait_exit(LIMIT) != 0


async def _goes_on(attempt: Attempt, source: Vm) -> bool:
    """Wait until a source whose migration failed runs its guest, and tell it to if it does not by itself."""
    with trio.move_on_after(STILL / 2):
        while await source.status() != "running":
            await trio.sleep(POLL)
    if await source.status() == "postmigrate":
        attempt.stands = True
        await source.qmp("cont")
    return await runs(source)


def _compare(attempt: Attempt, before: Tap, after: Tap) -> None:
    """Compare what went into the proxy with what came out; connections may have been accepted in any order."""

    def digests(tap: Tap) -> list[tuple[bytes, bytes]]:
        return sorted(
            (sha256(one.forward.read_bytes()).digest(), sha256(one.backward.read_bytes()).digest())
            for one in tap.recordings
        )

    attempt.untouched = digests(before) == digests(after)
    attempt.compare(main_channel(before), main_channel(after))
