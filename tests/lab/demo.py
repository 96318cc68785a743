"""The main job, shown: a guest that the destination refuses moves through the proxy and counts on.

Run it with `make demo`: on real arm64 KVM, in two emulated hosts whose processors differ in MIDR_EL1. `make demo
DEMO=tcg` is the quick one, between two QEMUs that emulate a cortex-a57 and a cortex-a72.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from tests.lab.debian import ImageError
from tests.lab.guest import counter_guest
from tests.lab.host import A57_R1P0, A57_R1P3, running_host
from tests.lab.images import SUITES, host_image
from tests.lab.proxy import running_proxy, vmstate_proxy
from tests.lab.qmp import LabError
from tests.lab.vm import running_vm, wire_uri

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from tests.lab.proxy import Proxy
    from tests.lab.vm import Vm

SUITE = "trixie"
RECORDED = "/tmp/destination.stream"
R1P0, R1P3 = 0x411FD070, 0x411FD073

console = Console(highlight=False)


class Machine(Protocol):
    """Where guests run: an emulated host (`tests.lab.host.Host`), or this machine (`Emulator`)."""

    def guest(
        self, *, name: str = ..., image: bytes | None = ..., incoming: str | None = ..., paused: bool = ...
    ) -> AbstractAsyncContextManager[Vm]:
        """Run a guest for the length of an `async with`."""

    async def get(self, path: str) -> bytes:
        """Read a file."""


@dataclass(frozen=True, slots=True)
class Emulator:
    """This machine, whose QEMU emulates a processor."""

    cpu: str

    @asynccontextmanager
    async def guest(
        self, *, name: str = "guest", image: bytes | None = None, incoming: str | None = None, paused: bool = False
    ) -> AsyncIterator[Vm]:
        """Run a guest for the length of an `async with`."""
        async with running_vm(name=name, cpu=self.cpu, guest=image, incoming=incoming, paused=paused) as vm:
            yield vm

    async def get(self, path: str) -> bytes:
        """Read a file."""
        return Path(path).read_bytes()


@dataclass(frozen=True, slots=True)
class Stage:
    """Two machines, what they are called, what the operator vouches for, and the MIDR_EL1 that guests read on KVM."""

    here: Machine
    there: Machine
    source: str
    destination: str
    options: tuple[str, ...]
    midrs: tuple[int, int] | None = None


async def on_kvm() -> None:
    """Show it on real arm64 KVM."""
    step(f"Booting two emulated arm64 hosts with a real KVM ({SUITES[SUITE]}): {A57_R1P0} and {A57_R1P3}")
    async with running_host(cpu=A57_R1P0, suite=SUITE) as here, running_host(cpu=A57_R1P3, suite=SUITE) as there:
        options = ("--allow-midr", f"{R1P0:#x}")
        names = f"a KVM host whose MIDR_EL1 is {R1P0:#x}", f"a KVM host whose MIDR_EL1 is {R1P3:#x}"
        await show(Stage(here, there, *names, options, (R1P0, R1P3)))


async def on_tcg() -> None:
    """Show it between two QEMUs that emulate processors."""
    options = ("--allow-midr", "none", "--allow-register", "ID_MMFR0_EL1,ID_MMFR0", "--allow-loss", "any")
    here, there = Emulator("cortex-a57"), Emulator("cortex-a72")
    await show(Stage(here, there, f"-cpu {here.cpu}", f"-cpu {there.cpu}", options))


async def show(stage: Stage) -> None:
    """Show it step by step; any step that goes otherwise raises."""
    with tempfile.TemporaryDirectory(prefix="vmstate-demo-") as folder:
        profile = Path(folder) / "destination.toml"
        async with stage.here.guest(name="source", image=counter_guest(touch_pages=2000)) as source:
            count = await source.wait_counter_moves()
            step(f"A guest runs on {stage.source}; its counter stands at {count:,}")
            if stage.midrs is not None:
                await told_midr(source, stage.midrs[0])
            await refused_directly(stage, source)
            await learned(stage, profile)
            await through_the_proxy(stage, source, profile)


async def refused_directly(stage: Stage, source: Vm) -> None:
    """Migrate without a proxy, to see the destination's own refusal."""
    async with stage.there.guest(name="destination", incoming="tcp:127.0.0.1:0") as destination:
        uri = wire_uri(await destination.incoming_port())
        step(f"Migrating directly to {stage.destination}: migrate {uri}")
        await source.migrate(uri)
        expect((await source.wait_migration()).status, "failed")
        await destination.wait_exit()
        console.print(Panel(destination.stderr_text().strip(), title="the destination QEMU says", style="red"))
        before = await source.counter()
        after = await source.wait_counter_moves()
        console.print(f"  The guest still runs on the source: {before:,} -> {after:,}\n")


async def learned(stage: Stage, profile: Path) -> None:
    """Learn what the destination's registers are, from a paused guest on it."""
    recorded = RECORDED if not isinstance(stage.there, Emulator) else str(profile.with_name("recorded"))
    stream = profile.with_suffix(".stream")
    async with stage.there.guest(name="profile", paused=True) as vm:
        await vm.migrate(f"exec:cat > '{recorded}'", return_path=False)
        expect((await vm.wait_migration()).status, "completed")
    stream.write_bytes(await stage.there.get(recorded))
    emulated = ("--tcg",) if isinstance(stage.there, Emulator) else ()
    said = " ".join((stream.name, "-o", profile.name, *emulated))
    step(f"Learning the destination's registers: vmstate-proxy host learn {said}")
    code, output = await vmstate_proxy("host", "learn", str(stream), "-o", str(profile), *emulated)
    expect(code, 0, output)


async def through_the_proxy(stage: Stage, source: Vm, profile: Path) -> None:
    """Migrate through the proxy, and show its report."""
    async with stage.there.guest(name="destination", incoming="tcp:127.0.0.1:0") as destination:
        target = wire_uri(await destination.incoming_port())
        async with running_proxy(target, "--host", str(profile), *stage.options, "--once") as proxy:
            step(
                f"Standing between: vmstate-proxy run --listen {proxy.uri} --connect {target} --host {profile.name} "
                f"{' '.join(stage.options)} --once"
            )
            step(f"Migrating through it: migrate {proxy.uri}")
            await source.migrate(proxy.uri)
            expect((await source.wait_migration()).status, "completed", proxy.text())
            left = await source.counter()
            arrived = await destination.wait_counter_moves()
            console.print(f"  The guest runs on the destination: {left:,} -> {arrived:,}")
            if arrived <= left:
                raise LabError("the counter did not go on")
            if stage.midrs is not None:
                await told_midr(destination, stage.midrs[1])
            await reported(proxy)


async def told_midr(guest: Vm, midr: int) -> None:
    """Show what the guest itself reads in MIDR_EL1."""
    await guest.wait_midr(midr)
    console.print(f"  The guest reads MIDR_EL1 as {midr:#x}")


async def reported(proxy: Proxy) -> None:
    """Show what the proxy says it did."""
    expect(await proxy.wait_exit(), 0, proxy.text())
    [report] = proxy.reports()
    expect(report["outcome"], "rewritten")
    console.print()
    title = f"{report['outcome']}: {report['bytes_in']:,} bytes in, {report['bytes_out']:,} bytes out"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("vCPU", "register", "from", "to", "allowed by"):
        table.add_column(column, no_wrap=True)
    for change in report["changes"]:
        table.add_row(str(change["vcpu"]), change["register"], change["from"], change["to"], change["rule"])
    console.print(table)


def step(text: str) -> None:
    """Announce a step."""
    console.print(f"[bold]* {text}", soft_wrap=True)


def expect(found: object, wanted: object, detail: str = "") -> None:
    """Raise unless what was found is what was wanted."""
    if found != wanted:
        raise LabError(f"{wanted!r} was expected, not {found!r} {detail}".strip())


def run() -> int:
    """Run the demo that was asked for and return its exit code."""
    demo = on_tcg if sys.argv[1:] == ["tcg"] else on_kvm
    if demo is on_kvm:
        try:
            host_image(SUITE, lambda line: step(line.capitalize()))
        except ImageError as error:
            console.print(f"[yellow]No arm64 hosts here ({error}); this is the demo without KVM:", soft_wrap=True)
            demo = on_tcg
    failed = 0
    try:
        trio.run(demo)
    except* LabError as group:
        failed = 1
        for leaf in leaves(group):
            console.print(f"[red]The demo failed: {leaf}", soft_wrap=True)
    return failed


def leaves(group: BaseExceptionGroup[LabError]) -> list[BaseException]:
    """Return the single errors of a group."""
    return [
        leaf
        for error in group.exceptions
        for leaf in (leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]


if __name__ == "__main__":
    sys.exit(run())
