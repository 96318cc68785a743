"""One migration of a running guest in one shape, through the proxy or without it, and what came of it in words."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests.lab.guest import counter_guest
from tests.lab.proxy import Proxy, running_proxy, vmstate_proxy
from tests.lab.qmp import LabError, QmpError
from tests.lab.shapes import MACHINE, Shape, Sides, make_disks
from tests.lab.tap import open_tap
from tests.lab.vm import LabTimeoutError, Vm, VmExitedError, running_vm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.lab.tap import Tap

LIMIT = 60.0
"""Seconds for one migration; the machine may have other things to do."""

_WHOLE_LIMIT = 150.0
"""Seconds for it with both guests' start and end: also a QEMU that does not answer its monitor is left behind."""

_POLL = 0.02
_STILL = 10.0
"""Seconds that a guest may stand still where it should run."""

_TRIES = 6
"""How often a migration is tried whose guest's memory QEMU may lose; see `cross`."""

_DEVICE_STATE = 1 << 18
"""More bytes than the device state of these guests and its vmdesc have."""

LOSES = " (QEMU loses memory at times, without the proxy, too)"
"""Follows what came of a migration that was tried more than once; see `cross`."""

NOT_THERE = "QEMU has it not"
"""A shape that needs what a QEMU does not know."""

_STANDS = "refused; the guest stands until `cont`"
_NOT_KNOWN = ("does not accept value", "is unexpected", "Property 'migration.", "is not compiled in")
_KILLED = "terminating on signal"
_PLACE = re.compile(r"offset 0x[0-9a-f]+(, section .*?)?: ")
_IDLE = re.compile(r" (warning|info): ")
_VIRT = re.compile(r"virt-(\d+)\.(\d+)")
_SOURCE_CPU, _OTHER_CPU = "cortex-a57", "cortex-a72"
_SWAPS = ("--allow-register", "ID_MMFR0_EL1,ID_MMFR0")
_VOUCH = ("--allow-midr", "none")  # TCG guests have no MIDR_EL1 in their streams


class Treatment(Enum):
    """What the destination's processor is, and what the policy lets happen."""

    SAME = "the same processor: nothing to change"
    SWAP = "another processor, and what differs may be swapped"
    FORBID = "another processor, and nothing may be swapped"

    @property
    def cpu(self) -> str:
        """The destination's -cpu."""
        return _SOURCE_CPU if self is Treatment.SAME else _OTHER_CPU


class Qemus:
    """What is known of the QEMUs of the Debian releases: profiles of their processors, capabilities, machine types."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: dict[str, trio.Lock] = {}
        self._known: dict[str, set[str]] = {}
        self._machines: dict[str, list[str]] = {}
        self.versions: dict[str, str] = {}

    async def profile(self, suite: str, machine: str, cpu: str) -> str:
        """Return the path of the profile of an emulated processor, learned from a paused guest."""
        stream = await self._stream(suite, machine, cpu)
        path = stream.with_suffix(".toml")
        async with self._locks.setdefault(path.name, trio.Lock()):
            if not path.exists():
                code, output = await vmstate_proxy("host", "learn", str(stream), "-o", str(path))
                if code:
                    raise LabError(f"{suite}, {machine}, {cpu}: {output}")
        return str(path)

    async def allowances(self, here: str, there: str, machine: str, cpu: str) -> list[str]:
        """Return the options that `check` names for a guest of one QEMU, until it names no others."""
        stream = str(await self._stream(here, machine, _SOURCE_CPU))
        profile = await self.profile(there, machine, cpu)
        found: dict[str, dict[str, None]] = {}
        while True:
            options = [word for option, names in found.items() for word in (option, ",".join(names))]
            _, output = await vmstate_proxy("check", stream, "--host", profile, "--json", *_VOUCH, *options)
            named = [verdict["option"] for verdict in json.loads(output)["verdicts"] if verdict["option"]]
            before = sum(map(len, found.values()))
            for words in named:
                option, _, register = words.partition(" ")
                found.setdefault(option, {})[register] = None
            if sum(map(len, found.values())) == before:
                return options

    async def _stream(self, suite: str, machine: str, cpu: str) -> Path:
        path = self._folder / f"{suite}-{machine}-{cpu}.stream"
        async with self._locks.setdefault(path.name, trio.Lock()):
            if not path.exists():
                new = path.with_suffix(".new")
                async with running_vm(name="recorded", qemu=suite, cpu=cpu, machine=machine, paused=True) as vm:
                    await vm.migrate(f"exec:cat > '{new}'", return_path=False)
                    await vm.wait_migration()
                new.rename(path)
        return path

    async def capabilities(self, suite: str) -> set[str]:
        """Return the migration capabilities that a QEMU knows."""
        await self._ask(suite)
        return self._known[suite]

    async def machine(self, suite: str, name: str) -> str:
        """Return a machine type: "oldest" and "newest" stand for those of a QEMU's `virt` types."""
        await self._ask(suite)
        ages = {"oldest": self._machines[suite][0], "newest": self._machines[suite][-1]}
        return ages.get(name, name)

    async def _ask(self, suite: str) -> None:
        async with self._locks.setdefault(suite, trio.Lock()):
            if suite in self._known:
                return
            async with running_vm(qemu=suite, machine=MACHINE, paused=True) as vm:
                version = (await vm.qmp("query-version"))["qemu"]
                self.versions[suite] = ".".join(str(version[part]) for part in ("major", "minor", "micro"))
                self._known[suite] = {reply["capability"] for reply in await vm.qmp("query-migrate-capabilities")}
                found = [_VIRT.fullmatch(machine["name"]) for machine in await vm.qmp("query-machines")]
                types = sorted((int(match[1]), int(match[2])) for match in found if match)
                self._machines[suite] = [f"virt-{major}.{minor}" for major, minor in types]


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
        self.differing = _differing(before, after)
        self.shorter = len(before) - len(after)
        self.local = len(before) - _same(before, after) - _same(before[::-1], after[::-1]) < _DEVICE_STATE


async def cross(qemus: Qemus, shape: Shape, here: str, there: str, treatment: Treatment) -> str:
    """Migrate a running guest through the proxy; return what came of it, as the table has it.

    A guest that stands still at its destination, with memory that is not what its registers say, is tried again if this
    happens without the proxy, too.

    Args:
        qemus: what is known of them.
        shape: what to turn on.
        here: the source's Debian release.
        there: the destination's.
        treatment: what the processors and the policy are.

    Returns:
        "untouched", "repaired", "refused", "refused: WORDS", "refused; the guest stands until `cont`", "QEMU has it
        not", "QEMU refuses: WORDS", "fails without the proxy, too: WORDS"; or in bold, what must not be.
    """
    wanted = {*shape.capabilities, *shape.source_capabilities}
    for suite in here, there:
        if wanted - await qemus.capabilities(suite):
            return NOT_THERE
    loses = False
    try:
        attempt = await attempted(qemus, shape, here, there, treatment)
        if attempt.memory_lost:
            loses = await _loses_memory(qemus, shape, here, there)
            for _ in range(_TRIES if loses else 0):
                attempt = await attempted(qemus, shape, here, there, treatment)
                if not attempt.memory_lost:
                    break
    except QmpError as error:
        return NOT_THERE if _unknown(error.desc) else f"QEMU refuses: {_brief(error.desc)}"
    except VmExitedError as error:
        if _KILLED in error.stderr:
            raise
        return NOT_THERE if _unknown(error.stderr) else f"QEMU refuses: {_brief(error.stderr)}"
    if attempt.problem and not attempt.problem.startswith("hangs"):
        return f"**{attempt.problem}**"
    if attempt.arrived:
        words = _arrived(attempt, treatment, between=here != there)
        return words + LOSES if loses else words
    if attempt.report.get("outcome") == "refused":
        if attempt.stands:
            return _STANDS
        listed = "--allow-register" in attempt.words or (here != there and "--allow-drop" in attempt.words)
        return "refused" if listed and treatment is Treatment.FORBID else f"refused: {_brief(attempt.words)}"
    direct = await _directly(qemus, shape, here, there)
    if direct.arrived:
        return f"**fails: {_brief(attempt.words)}**"
    return f"fails without the proxy, too: {_brief(attempt.words or direct.words or direct.problem)}"


async def _directly(qemus: Qemus, shape: Shape, here: str, there: str) -> Attempt:
    try:
        return await attempted(qemus, shape, here, there, Treatment.SAME, proxied=False)
    except (QmpError, VmExitedError) as error:
        return Attempt(words=str(error))


async def _loses_memory(qemus: Qemus, shape: Shape, here: str, there: str) -> bool:
    """Tell whether QEMU loses a guest's memory in this shape without a proxy, if not each time."""
    for _ in range(2 * _TRIES):
        if (await _directly(qemus, shape, here, there)).memory_lost:
            return True
    return False


def _arrived(attempt: Attempt, treatment: Treatment, *, between: bool) -> str:
    outcome, changes = attempt.report["outcome"], attempt.report["changes"]
    dropped = sum(change["action"] == "drop" for change in changes)
    if treatment is Treatment.FORBID:
        return "**let through**"
    if treatment is Treatment.SAME and not between and outcome != "unchanged":
        return "**changed**"
    if outcome == "unchanged":
        return "untouched" if attempt.untouched and treatment is Treatment.SAME else "**changed otherwise**"
    if dropped:
        # An id and a value each; and the vmdesc tells the new lengths, with fewer digits perhaps.
        placed = attempt.local and 0 <= attempt.shorter - 16 * dropped < 64
    else:
        placed = attempt.differing is not None and 0 < attempt.differing <= 8 * len(changes)
    return "repaired" if placed and outcome == "rewritten" else "**changed otherwise**"


def _alone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        [error] = error.exceptions
    return error


def _unknown(words: str) -> bool:
    return any(known in words for known in _NOT_KNOWN)


def _brief(words: str) -> str:
    """Return the first sentence of QEMU's or the proxy's words: no offsets, no advice, no addresses."""
    lines = [line for line in words.splitlines() if line.strip() and not _IDLE.search(line)] or ["(no words)"]
    text = re.sub(r"^qemu-system-\w+: ", "", lines[0])
    text = _PLACE.sub("", text, count=1)
    text = re.sub(r"(/\S+|\d+\.\d+\.\d+\.\d+:\d+)", "...", text)
    return text.partition("; ")[0].strip().rstrip(".").replace("|", "/")


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
    options = [*_VOUCH, *shape.options]
    if shape.arm64:
        options += ["--host", await qemus.profile(there, machine, treatment.cpu)]
        if here != there and treatment is not Treatment.FORBID:
            options += await qemus.allowances(here, there, machine, treatment.cpu)
        elif treatment is Treatment.SWAP:
            options += _SWAPS
        if shape.known:
            options += ["--source", await qemus.profile(here, machine, _SOURCE_CPU)]
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
            if _KILLED in error.stderr:
                raise
            return Attempt(words=f"{error.name} exits with {error.returncode}: {_brief(error.stderr)}")
        except LabTimeoutError as error:
            last = "".join(proxy.text().strip().splitlines()[-1:]) if proxy else ""
            return Attempt(words=str(error), problem=f"hangs: {_brief(str(error))} {_brief(last)}".strip())
        attempt.words = outcome.error
        if outcome.status != "completed" and (said := await _last_words(destination)):
            attempt.words = said
        if outcome.status == "completed":
            left = await source.counter()
            if shape.arrive:
                await shape.arrive(sides)
            refused = proxy is not None and not shape.return_path and await _gave_up(proxy)
            if refused:
                # The source was not told; its guest is still there, and stopped.
                await source.qmp("cont")
                attempt.problem = "" if await _runs(source) else "lost"
            else:
                attempt.arrived = await _counts_beyond(destination, left)
                if not attempt.arrived:
                    attempt.memory_lost = not destination.exited() and await destination.status() == "running"
                    attempt.problem = f"lost: {_brief(destination.stderr_text())}"
                if await source.status() == "running":
                    attempt.problem = "the guest runs twice"
        elif not await _goes_on(attempt, source):
            attempt.problem = f"lost: the source is {await source.status()}"
        elif await _is_running(destination):
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
                return Attempt(words=outcome.error, problem="" if await _runs(source) else "lost")
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
                cpu=_SOURCE_CPU if arm64 else None,
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


async def _counts_beyond(vm: Vm, left: int) -> bool:
    """Wait until the guest counts on from where it was; what it shows before may be a page that was sent early."""
    try:
        with trio.move_on_after(LIMIT):
            while await vm.status() != "running":
                await trio.sleep(_POLL)
        last, moved = await vm.counter(), trio.current_time()
        while last <= left and trio.current_time() - moved < _STILL:
            await trio.sleep(_POLL)
            now = await vm.counter()
            last, moved = now, trio.current_time() if now != last else moved
        if last > left:
            await vm.wait_counter_moves(LIMIT)
    except LabError:
        return False
    return last > left


async def _last_words(destination: Vm) -> str:
    """Return what a destination said if it has ended, or is about to."""
    try:
        await destination.wait_exit(_STILL / 5)
    except LabTimeoutError:
        return ""
    return destination.stderr_text()


async def _goes_on(attempt: Attempt, source: Vm) -> bool:
    """Wait until a source whose migration failed runs its guest, and tell it to if it does not by itself."""
    with trio.move_on_after(_STILL / 2):
        while await source.status() != "running":
            await trio.sleep(_POLL)
    if await source.status() == "postmigrate":
        attempt.stands = True
        await source.qmp("cont")
    return await _runs(source)


async def _is_running(vm: Vm) -> bool:
    try:
        with trio.fail_after(LIMIT):
            return await vm.status() == "running"
    except VmExitedError:
        return False


async def _runs(vm: Vm) -> bool:
    try:
        await vm.wait_counter_moves(LIMIT / 4)
    except LabError:
        return False
    return await vm.status() == "running"


def _compare(attempt: Attempt, before: Tap, after: Tap) -> None:
    """Compare what went into the proxy with what came out; connections may have been accepted in any order."""

    def digests(tap: Tap) -> list[tuple[bytes, bytes]]:
        return sorted(
            (sha256(one.forward.read_bytes()).digest(), sha256(one.backward.read_bytes()).digest())
            for one in tap.recordings
        )

    attempt.untouched = digests(before) == digests(after)
    attempt.compare(_main_channel(before), _main_channel(after))


def _main_channel(tap: Tap) -> bytes:
    streams = [recording.forward.read_bytes() for recording in tap.recordings]
    return next(stream for stream in streams if stream.startswith(b"QEVM"))


def _differing(one: bytes, other: bytes) -> int | None:
    if len(one) != len(other):
        return None
    step = 1 << 12
    return sum(
        left != right
        for at in range(0, len(one), step)
        if one[at : at + step] != other[at : at + step]
        for left, right in zip(one[at : at + step], other[at : at + step], strict=True)
    )


def _same(one: bytes, other: bytes) -> int:
    """Return how many bytes are equal from the start on."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
