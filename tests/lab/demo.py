"""The main job, shown: a guest that the destination refuses moves through the proxy and counts on.

Run it with `make demo`. Both QEMUs are real; they emulate (TCG) a cortex-a57 and a cortex-a72.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import trio
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from tests.lab.guest import counter_guest
from tests.lab.proxy import running_proxy, vmstate_proxy
from tests.lab.qmp import LabError
from tests.lab.vm import Vm, running_vm, wire_uri

SOURCE_CPU, DESTINATION_CPU = "cortex-a57", "cortex-a72"
REGISTERS = "ID_MMFR0_EL1,ID_MMFR0"

console = Console(highlight=False)


async def main() -> None:
    """Show it step by step; any step that goes otherwise ends the demo with exit code 1."""
    with tempfile.TemporaryDirectory(prefix="vmstate-demo-") as folder:
        profile = Path(folder) / "destination.toml"
        async with running_vm(name="source", cpu=SOURCE_CPU, guest=counter_guest(touch_pages=2000)) as source:
            count = await source.wait_counter_moves()
            step(f"A guest runs on -cpu {SOURCE_CPU}; its counter stands at {count:,}")
            await refused_directly(source)
            await learned(profile)
            await through_the_proxy(source, profile)


async def refused_directly(source: Vm) -> None:
    """Migrate without a proxy, to see QEMU's own refusal."""
    async with running_vm(name="destination", cpu=DESTINATION_CPU, incoming="tcp:127.0.0.1:0") as destination:
        uri = wire_uri(await destination.incoming_port())
        step(f"Migrating directly to -cpu {DESTINATION_CPU}: migrate {uri}")
        await source.migrate(uri)
        expect((await source.wait_migration()).status, "failed")
        await destination.wait_exit()
        console.print(Panel(destination.stderr_text().strip(), title="the destination QEMU says", style="red"))
        before = await source.counter()
        after = await source.wait_counter_moves()
        console.print(f"  The guest still runs on the source: {before:,} -> {after:,}\n")


async def learned(profile: Path) -> None:
    """Learn what the destination's registers are, from a paused guest on it."""
    stream = profile.with_suffix(".stream")
    async with running_vm(name="profile", cpu=DESTINATION_CPU, paused=True) as vm:
        await vm.migrate(f"exec:cat > '{stream}'", return_path=False)
        expect((await vm.wait_migration()).status, "completed")
    command = ("host", "learn", str(stream), "-o", str(profile))
    step(f"Learning the destination's registers: vmstate-proxy host learn {stream.name} -o {profile.name}")
    code, output = await vmstate_proxy(*command)
    expect(code, 0, output)


async def through_the_proxy(source: Vm, profile: Path) -> None:
    """Migrate through the proxy, and show its report."""
    async with running_vm(name="destination", cpu=DESTINATION_CPU, incoming="tcp:127.0.0.1:0") as destination:
        target = wire_uri(await destination.incoming_port())
        options = ("--host", str(profile), "--allow-midr", "none", "--allow-register", REGISTERS, "--once")
        async with running_proxy(target, *options) as proxy:
            step(
                f"Standing between: vmstate-proxy run --listen {proxy.uri} --connect {target} --host {profile.name} "
                f"--allow-midr none --allow-register {REGISTERS} --once"
            )
            step(f"Migrating through it: migrate {proxy.uri}")
            await source.migrate(proxy.uri)
            expect((await source.wait_migration()).status, "completed")
            left = await source.counter()
            arrived = await destination.wait_counter_moves()
            expect(await proxy.wait_exit(), 0, proxy.text())
            [report] = proxy.reports()
        console.print(f"  The guest runs on the destination: {left:,} -> {arrived:,}\n")
        if arrived <= left:
            raise LabError("the counter did not go on")
        expect(report["outcome"], "rewritten")
        title = f"{report['outcome']}: {report['bytes_in']:,} bytes in, {report['bytes_out']:,} bytes out"
        table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        for column in ("vCPU", "register", "id", "from", "to", "allowed by"):
            table.add_column(column, no_wrap=True)
        for change in report["changes"]:
            table.add_row(
                str(change["vcpu"]), change["register"], change["id"], change["from"], change["to"], change["rule"]
            )
        console.print(table)


def step(text: str) -> None:
    """Announce a step."""
    console.print(f"[bold]* {text}", soft_wrap=True)


def expect(found: object, wanted: object, detail: str = "") -> None:
    """Raise unless what was found is what was wanted."""
    if found != wanted:
        raise LabError(f"{wanted!r} was expected, not {found!r} {detail}".strip())


def run() -> int:
    """Run the demo and return its exit code."""
    failed = 0
    try:
        trio.run(main)
    except* LabError as group:
        failed = 1
        for error in leaves(group):
            console.print(f"[red]The demo failed: {error}", soft_wrap=True)
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
