"""What the proxy adds to the switchover where it asks its own host's KVM, measured in emulated arm64 hosts.

The played streams of `benchmarks.played` take turns there directly, through a proxy that asks KVM, and through others
that judge by a profile. Real guests go from one host to another, with the downtime that their QEMU reports. What is
asked of KVM meanwhile is counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import trio

from benchmarks import page, played
from benchmarks.carriers import ROOT
from benchmarks.goals import KVM, Goal
from benchmarks.switchover import CAPTURE, MIDR, grown
from formats.arm.sysreg import parse_register
from tests.kvm.helpers import count_trial
from tests.lab.guest import counter_guest
from tests.lab.host import A57_R1P3, running_host
from tests.lab.host_proxy import run_python_in, running_proxy_in
from tests.lab.proxy import vmstate_proxy
from tests.lab.vm import wire_uri
from tests.proxy.helpers import NEWER, NEWER_SWAPPED, with_value
from tests.streams import RAM_EOS, RAM_ID, ram_page, section_end, section_part, short_head

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.lab.host import Host
    from tests.lab.host_proxy import HostProxy

VCPUS = (1, 8, 32)
_GUESTS = (1, 8)
_GUEST_ROUNDS = 3
_OTHERS = 20
_PAGES = 8
_SUITE = "trixie"
_FOLDER = "/tmp/bench"
_PORT = 4446
_LIMIT = 480.0
_LOOP = """
import time
started, seen = time.perf_counter(), {}
for number in range(300_000):
    seen[number & 255] = str(number)
print(time.perf_counter() - started)
"""
_OWN = ("TTBR0_EL1", "ESR_EL1", "FAR_EL1", "PAR_EL1", "TPIDR_EL1", "TPIDR_EL0", "TPIDRRO_EL0", "CNTV_CVAL_EL0")
"""What each vCPU of a running guest has a value of its own in, beside MPIDR_EL1."""
_SHARED = ("SCTLR_EL1", "CPACR_EL1", "TTBR1_EL1", "TCR_EL1", "MAIR_EL1", "VBAR_EL1", "CONTEXTIDR_EL1", "CNTKCTL_EL1")
"""What a running guest has set alike in all of its vCPUs; the recorded one never ran."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the destination.

    Attributes:
        name: as in the tables.
        capture: the recorded stream that the played one is grown from.
        profile: the destination's, in captures/hosts; it tells how long the stream is afterwards.
        options: what is vouched for.
        kvm: whether KVM is asked, in place of the profile.
        others: how many other migrations go through the same proxy.
        direct: whether there is no proxy.
    """

    name: str
    capture: str = CAPTURE
    profile: str = "trixie-a57"
    options: tuple[str, ...] = ("--allow-midr", MIDR)
    kvm: bool = False
    others: int = 0
    direct: bool = False


DIRECT = Way("direct", direct=True)
PROFILE = Way("a profile")
ASKED = Way("`--kvm`", kvm=True)
WAYS = (
    DIRECT,
    PROFILE,
    ASKED,
    Way(f"`--kvm`, {_OTHERS} others", kvm=True, others=_OTHERS),
    Way(
        "a profile of 8 kinds",
        NEWER,
        "trixie-v1",
        (
            *("--allow-midr", "0x414fd0c1", "--allow-erratum", "Spectre-BHB-k32"),
            *("--allow-register", "ID_DFR0_EL1,ID_AA64DFR0_EL1,ID_AA64MMFR2_EL1,ID_AA64PFR0_EL1"),
            *("--allow-loss", "ID_DFR0_EL1.MMapTrc,ID_AA64DFR0_EL1.DoubleLock"),
        ),
    ),
    Way(
        "registers left out",
        NEWER,
        "bookworm-n1",
        ("--allow-register", ",".join(NEWER_SWAPPED), "--allow-loss", "ID_AA64DFR0_EL1.DebugVer"),
    ),
)


@dataclass(frozen=True, slots=True)
class Guest:
    """What a real guest's migration took, in milliseconds.

    Attributes:
        downtime: how long the guest stood, as the source's QEMU reports.
        held: from the last byte of device state in to the first out, as the proxy reports; 0 for no proxy.
    """

    downtime: float
    held: float = 0.0


async def measured(rounds: int, say: Callable[[str], None]) -> tuple[list[Goal], str]:
    """Measure all; return the goals and the section of the page."""
    async with running_host(cpu=A57_R1P3, suite=_SUITE) as there:
        scale = await _scale(there, rounds)
        say(f"kvm: a Python loop takes {scale:.1f} times as long in the host")
        taken = await _played(there, rounds, say)
        counted = [await count_trial(there, vcpus) for vcpus in VCPUS]
        async with running_host(cpu=A57_R1P3, suite=_SUITE) as here:
            guests = await _guests(here, there, say)
    goals = [
        Goal(f"`--kvm`, {one['vcpus']} vCPUs: VMs made while the guest stands", one["vms"], 0, "VMs") for one in counted
    ]
    for vcpus, by_way in taken.items():
        added = 1000 * (median(by_way[ASKED.name][1:]) - median(by_way[PROFILE.name][1:]))
        goals.append(
            Goal(
                f"`--kvm`, {vcpus} vCPUs: switchover over a profile's", added, (1 + 0.1 * vcpus) * scale, "ms", why=KVM
            )
        )
    return goals, _section(rounds, scale, taken, counted, guests)


async def _scale(host: Host, rounds: int) -> float:
    """Return how many times as long as on this machine a plain loop takes in a host."""
    here, there = [], []
    for _ in range(rounds):
        done = await trio.run_process([sys.executable, "-c", _LOOP], capture_stdout=True)
        here.append(float(done.stdout))
        there.append(float((await host.run(["python3", "-c", _LOOP])).stdout))
    return median(there) / median(here)


# --- played streams


async def _played(host: Host, rounds: int, say: Callable[[str], None]) -> dict[int, dict[str, list[float]]]:
    """Return the seconds of each way's rounds, by the number of vCPUs; the first times first."""
    with tempfile.TemporaryDirectory(prefix="vmstate-bench-") as folder:
        plan: played.Plan = {"rounds": rounds, "ways": [await _plan(host, way, Path(folder)) for way in WAYS]}
    await host.put(f"{_FOLDER}/others.head", _others_head())
    await host.put(f"{_FOLDER}/others.piece", _others_piece())
    await host.put(f"{_FOLDER}/played.py", Path(played.__file__).read_bytes())
    await host.put(f"{_FOLDER}/plan", json.dumps(plan).encode())
    done = await run_python_in(host, f"{_FOLDER}/played.py", f"{_FOLDER}/plan", limit=_LIMIT)
    found: dict[str, dict[str, list[float]]] = json.loads(done.stdout)
    taken = {vcpus: {name: by_size[str(vcpus)] for name, by_size in found.items()} for vcpus in VCPUS}
    for vcpus, by_way in taken.items():
        for name, seconds in by_way.items():
            say(f"kvm: {vcpus} vCPUs, {name}: " + ", ".join(f"{one * 1000:.1f}" for one in seconds) + " ms")
    return taken


async def _plan(host: Host, way: Way, folder: Path) -> played.WayPlan:
    """Bring what a way needs into the host, and say it."""
    profile = f"{_FOLDER}/{way.profile}.toml"
    await host.put(profile, _profile(way).read_bytes())
    asked = ["--kvm"] if way.kvm else ["--host", profile]
    return {
        "name": way.name,
        "options": None if way.direct else [*asked, *way.options],
        "streams": [await _stream(host, way, vcpus, folder) for vcpus in VCPUS],
        "others": {"count": way.others, "head": f"{_FOLDER}/others.head", "piece": f"{_FOLDER}/others.piece"}
        if way.others
        else None,
    }


async def _stream(host: Host, way: Way, vcpus: int, folder: Path) -> played.StreamPlan:
    switchover = grown(vcpus, vmdesc=True, name=way.capture)
    before, state = switchover.before, _as_running(switchover.state, vcpus)
    file = f"{_FOLDER}/{way.capture}-{vcpus}.stream"
    await host.put(file, before + state)
    after = len(state)
    if not way.direct:
        (folder / "in").write_bytes(before + state)
        rewrite = ["rewrite", str(folder / "in"), str(folder / "out"), "--host", str(_profile(way)), *way.options]
        code, output = await vmstate_proxy(*rewrite)
        if code:
            raise RuntimeError(output)
        after = (folder / "out").stat().st_size - len(before)
        (folder / "out").unlink()
    return {"size": str(vcpus), "file": file, "before": len(before), "after": after}


def _profile(way: Way) -> Path:
    return ROOT / "captures" / "hosts" / f"{way.profile}.toml"


def _as_running(state: bytes, vcpus: int) -> bytes:
    """Have each vCPU be another one, as in a guest that runs."""
    for vcpu in range(vcpus):
        state = with_value(state, parse_register("MPIDR_EL1"), 1 << 31 | vcpu, vcpu)
        for number, name in enumerate(_SHARED):
            state = with_value(state, parse_register(name), 1 << number, vcpu)
        for number, name in enumerate(_OWN):
            state = with_value(state, parse_register(name), number << 20 | vcpu << 12, vcpu)
    return state


def _others_head() -> bytes:
    """Return what a migration begins with, to where its memory goes on."""
    return short_head().removesuffix(section_end(RAM_ID, RAM_EOS))


def _others_piece() -> bytes:
    pages = [ram_page(0, bytes(range(256)) * 16, "mach-virt.ram")]
    pages += [ram_page(index << 12, b"\x5a" * 4096) for index in range(1, _PAGES)]
    return section_part(RAM_ID, b"".join(pages) + RAM_EOS)


# --- real guests


async def _guests(here: Host, there: Host, say: Callable[[str], None]) -> dict[int, dict[str, list[Guest]]]:
    """Return what the migrations of guests with so many vCPUs took, by way; the ways take turns."""
    taken: dict[int, dict[str, list[Guest]]] = {}
    uri = f"tcp:127.0.0.1:{_PORT}"
    profile = f"{_FOLDER}/{PROFILE.profile}.toml"
    async with (
        running_proxy_in(there, uri, "--host", profile, inside=True) as by_profile,
        running_proxy_in(there, uri, "--kvm", inside=True) as by_kvm,
    ):
        ways = {DIRECT.name: None, PROFILE.name: by_profile, ASKED.name: by_kvm}
        for smp in _GUESTS:
            taken[smp] = {name: [] for name in ways}
            for _ in range(_GUEST_ROUNDS):
                for name, proxy in ways.items():
                    one = await _moved(here, there, smp, proxy)
                    taken[smp][name].append(one)
                    say(f"kvm: a guest of {smp} vCPUs, {name}: {one.downtime:.0f} ms, {one.held:.1f} ms in the proxy")
    return taken


async def _moved(here: Host, there: Host, smp: int, proxy: HostProxy | None) -> Guest:
    """Move a running guest."""
    known = 0 if proxy is None else len(proxy.reports())
    async with (
        here.guest(name="source", smp=smp, image=counter_guest()) as source,
        there.guest(name="destination", smp=smp, incoming=wire_uri(_PORT)) as destination,
    ):
        await source.wait_counter_moves()
        await source.migrate(wire_uri(await destination.incoming_port()) if proxy is None else proxy.uri)
        outcome = await source.wait_migration()
        if outcome.status != "completed":
            raise RuntimeError(f"{outcome.error} {'' if proxy is None else proxy.text()}")
        await destination.wait_counter_moves()
        downtime = float((await source.qmp("query-migrate"))["downtime"])
    if proxy is None:
        return Guest(downtime)
    *_, report = await proxy.wait_reports(known + 1)
    return Guest(downtime, 1000 * report["seconds"]["last_in_to_first_out"])


# --- the page


def _section(
    rounds: int,
    scale: float,
    taken: dict[int, dict[str, list[float]]],
    counted: Sequence[dict[str, Any]],
    guests: dict[int, dict[str, list[Guest]]],
) -> str:
    names = [way.name for way in WAYS]
    later = [
        [str(vcpus), *(f"{median(by_way[name][1:]) * 1000:.1f} ms" for name in names)]
        for vcpus, by_way in taken.items()
    ]
    first = [[str(VCPUS[0]), *(f"{taken[VCPUS[0]][name][0] * 1000:.1f} ms" for name in names)]]
    return (
        "## Switchover with --kvm\n\n"
        f"In an emulated arm64 host ({_SUITE}, cortex-a57 r1p3, one processor), where `python3 -c` takes {scale:.1f} "
        "times as long for a loop as on this machine; the bounds are so many times as long, too. The proxy runs there, "
        "as on a destination; source and destination are played there, over its loopback. From the last byte of device "
        f"state in to the last byte out, medians of {rounds} rounds, in which the ways took turns. Each vCPU has own "
        f"values in {len(_OWN) + 1} registers, and each one's MIDR_EL1 is swapped. The others through the same "
        "proxy are played migrations whose memory trickles. The 8 kinds are those of a neoverse-v1, to which guests of "
        "a neoverse-n1 go; registers are left out of the same guests' on the way to an older kernel.\n\n"
        f"{page.table(['vCPUs', *names], later)}\n"
        "The first migration after the proxy's start, once each:\n\n"
        f"{page.table(['vCPUs', *names], first)}\n"
        "What is done from the last byte of device state in to the first one out, counted: VMs made, what KVM is "
        "asked, and how often the sections are located, the vCPUs found in them, and all registers of a vCPU read:\n\n"
        f"{_counts(counted)}\n"
        "Real guests between two such hosts, alike, so that they also go directly: the downtime that the source's QEMU "
        f"reports, medians of {_GUEST_ROUNDS} rounds (and all of them); and for how long of that the proxy held the "
        "device state after its last byte had come:\n\n"
        f"{_downtimes(guests)}"
    )


def _counts(counted: Sequence[dict[str, Any]]) -> str:
    head = ["vCPUs", "VMs made", "ioctls", "of these, writes", "located", "vCPUs found", "registers read"]
    keys = ["vcpus", "vms", "ioctls", "writes", "located", "found", "read"]
    return page.table(head, [[str(one[key]) for key in keys] for one in counted])


def _downtimes(guests: dict[int, dict[str, list[Guest]]]) -> str:
    def downtime(moved: list[Guest]) -> str:
        return f"{median(one.downtime for one in moved):.0f} ms ({', '.join(f'{one.downtime:.0f}' for one in moved)})"

    rows = [
        [str(smp), name, downtime(moved), f"{median(one.held for one in moved):.1f} ms" if name != DIRECT.name else "-"]
        for smp, by_way in guests.items()
        for name, moved in by_way.items()
    ]
    return page.table(["vCPUs", "through", "downtime", "held by the proxy"], rows)
