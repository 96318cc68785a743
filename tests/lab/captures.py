"""The streams in captures/, recorded from real QEMUs; MANIFEST.tsv gets a line for each.

Run it with `make captures`. `python -m tests.lab.captures NAME...` records only those, and keeps the others.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import lzma
import re
import struct
import sys
import tempfile
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from proxy.captures.complete_file import complete_file
from proxy.errors import ProxyError
from tests.captures import CAPTURES, MANIFEST, NOTHING, Capture, read_manifest
from tests.lab.demo import expect, leaves
from tests.lab.guest import counter_guest
from tests.lab.host import A57_R1P0, A57_R1P3, running_host
from tests.lab.images import host_image
from tests.lab.qmp import LabError
from tests.lab.tap import open_tap
from tests.lab.vm import running_vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from tests.lab.host import Host
    from tests.lab.tap import Tap
    from tests.lab.vm import Vm

MIDR_EL1 = 0x603000000013C000
RETURN_PATH, POSTCOPY = "return-path", "postcopy-ram"
MEMORY_MIB = 64
TOUCHED_PAGES = 100
# Slow enough that postcopy starts with most pages still to come.
POSTCOPY_START, POSTCOPY_BANDWIDTH = 1 << 16, 1 << 18


@dataclass(frozen=True, slots=True)
class Recording:
    """What a way to record gives: the bytes from source to destination, and how it came to them."""

    stream: bytes
    outcome: str
    qemu: str
    command: str
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """A stream to record.

    Attributes:
        name: the file's name, without its ending.
        way: how it is recorded.
        cpu: the emulated host's -cpu; without a host, the guest's.
        suite: what the host runs; None for a guest that this machine's QEMU emulates.
        to: -cpu of the host that refuses it.
        machine: -machine.
        smp: number of vCPUs.
        binary: QEMU on this machine.
        extra: further arguments.
    """

    name: str
    way: Callable[[Recipe, Path, Host | None], Awaitable[Recording]]
    cpu: str
    suite: str | None = None
    to: str = ""
    machine: str = "virt-7.2"
    smp: int = 1
    binary: str = "qemu-system-aarch64"
    extra: tuple[str, ...] = ()

    @property
    def accelerator(self) -> str:
        """-accel."""
        return "tcg" if self.suite is None else "kvm"

    @property
    def arguments(self) -> str:
        """QEMU's arguments that matter."""
        cpu = self.cpu if self.suite is None else "host"
        plain = f"-M {self.machine} -accel {self.accelerator} -cpu {cpu} -smp {self.smp} -m {MEMORY_MIB}"
        return " ".join((plain, *self.extra))

    def guest(
        self,
        host: Host | None,
        *,
        name: str,
        image: bytes | None = None,
        incoming: str | None = None,
        paused: bool = False,
    ) -> AbstractAsyncContextManager[Vm]:
        """Run a guest on the host, or on this machine if there is none."""
        if host is not None:
            return host.guest(
                name=name,
                machine=self.machine,
                smp=self.smp,
                memory_mib=MEMORY_MIB,
                image=image,
                incoming=incoming,
                paused=paused,
                extra=self.extra,
            )
        return running_vm(
            name=name,
            binary=self.binary,
            machine=self.machine,
            cpu=self.cpu,
            smp=self.smp,
            memory_mib=MEMORY_MIB,
            guest=image,
            incoming=incoming,
            paused=paused,
            extra=self.extra,
        )


# --- the ways to record


async def saved(recipe: Recipe, folder: Path, host: Host | None) -> Recording:
    """Save a guest that never ran to a file."""
    path = folder / "stream" if host is None else Path("/tmp/recorded.stream")
    async with recipe.guest(host, name="saved", paused=True) as vm:
        await vm.migrate(f"exec:cat > '{path}'", return_path=False)
        expect((await vm.wait_migration()).status, "completed")
        qemu = await version(vm)
    stream = path.read_bytes() if host is None else await host.get(str(path))
    return Recording(stream, "saved", qemu, f"{recipe.arguments} -S; migrate exec:cat")


async def completed(recipe: Recipe, folder: Path, host: Host | None) -> Recording:
    """Migrate a guest that counts; it counts on over there."""
    async with pair(recipe, folder, host) as (source, destination, tap):
        await source.migrate(tap.uri)
        expect((await source.wait_migration()).status, "completed")
        await destination.wait_counter_moves()
        return await tapped(recipe, "completed", source, tap, RETURN_PATH)


async def refused(recipe: Recipe, folder: Path, host: Host | None) -> Recording:
    """Migrate a guest that counts to a host that refuses it; it counts on over here."""
    async with pair(recipe, folder, host) as (source, destination, tap):
        await source.migrate(tap.uri)
        expect((await source.wait_migration()).status, "failed")
        await destination.wait_exit()
        await source.wait_counter_moves()
        return await tapped(recipe, "refused", source, tap, RETURN_PATH)


async def postcopied(recipe: Recipe, folder: Path, host: Host | None) -> Recording:
    """Migrate a guest that counts, and let it go over before its memory does."""
    async with pair(recipe, folder, host, {POSTCOPY: True}) as (source, destination, tap):
        slowly = {"max-bandwidth": POSTCOPY_BANDWIDTH}
        await source.migrate(tap.uri, capabilities={POSTCOPY: True}, parameters=slowly)
        await tap.wait_forwarded(POSTCOPY_START)
        await source.qmp("migrate-start-postcopy")
        expect((await source.wait_migration()).status, "completed")
        await destination.wait_counter_moves()
        return await tapped(recipe, "completed", source, tap, RETURN_PATH, POSTCOPY)


@asynccontextmanager
async def pair(
    recipe: Recipe, folder: Path, host: Host | None, capabilities: Mapping[str, bool] | None = None
) -> AsyncIterator[tuple[Vm, Vm, Tap]]:
    """Run a guest that counts, a QEMU that waits for it on another host, and a tap between them."""
    async with (
        running_host_of(recipe, recipe.to or recipe.cpu) as other,
        recipe.guest(host, name="source", image=counter_guest(touch_pages=TOUCHED_PAGES)) as source,
        recipe.guest(other, name="destination", incoming="defer") as destination,
    ):
        await destination.listen(capabilities=capabilities)
        await source.wait_counter_moves()
        async with open_tap(await destination.incoming_port(), folder) as tap:
            yield source, destination, tap


async def tapped(recipe: Recipe, outcome: str, source: Vm, tap: Tap, *capabilities: str) -> Recording:
    """Collect what went through the first connection of a tap, the main channel."""
    [recording, *_] = tap.recordings
    await recording.wait()
    command = f"{recipe.arguments}; migrate tcp"
    if recipe.to:
        command += f" to a host of -cpu {recipe.to}"
    if POSTCOPY in capabilities:
        command += "; migrate-start-postcopy"
    return Recording(recording.forward.read_bytes(), outcome, await version(source), command, capabilities)


def running_host_of(recipe: Recipe, cpu: str) -> AbstractAsyncContextManager[Host | None]:
    """Run a host of the recipe's suite; none if it has no suite."""
    return nullcontext() if recipe.suite is None else running_host(cpu=cpu, suite=recipe.suite)


async def version(vm: Vm) -> str:
    """Return QEMU's version."""
    found = (await vm.qmp("query-version"))["qemu"]
    return "{major}.{minor}.{micro}".format(**found)


# --- what is recorded


KVM = "virt-7.2,gic-version=3"
NO_VMDESC = ",suppress-vmdesc=on"
A72, N1 = "cortex-a72", "neoverse-n1"
# Paused before its first instruction, a PC needs no BIOS; this flash is empty, so that none is recorded.
NO_BIOS = ("-drive", "if=pflash,driver=null-co,size=64k,read-zeroes=on,read-only=on")

RECIPES = (
    Recipe("kvm-bookworm-a57r3", saved, A57_R1P3, "bookworm", machine=KVM),
    Recipe("kvm-bookworm-a57r3-smp4", saved, A57_R1P3, "bookworm", machine=KVM, smp=4),
    Recipe("kvm-bookworm-a72", saved, A72, "bookworm", machine=KVM),
    Recipe("kvm-bookworm-n1", saved, N1, "bookworm", machine=KVM),
    Recipe("kvm-trixie-a57r0", saved, A57_R1P0, "trixie", machine=KVM),
    Recipe("kvm-trixie-a57r0-smp2", saved, A57_R1P0, "trixie", machine=KVM, smp=2),
    Recipe("kvm-trixie-a57r3", saved, A57_R1P3, "trixie", machine=KVM),
    Recipe("kvm-trixie-a57r3-no-vmdesc", saved, A57_R1P3, "trixie", machine=KVM + NO_VMDESC),
    Recipe("kvm-trixie-a72", saved, A72, "trixie", machine=KVM),
    Recipe("kvm-trixie-n1", saved, N1, "trixie", machine=KVM),
    Recipe("kvm-trixie-a57r3-live", completed, A57_R1P3, "trixie", machine=KVM),
    Recipe("kvm-trixie-a57r0-refused", refused, A57_R1P0, "trixie", machine=KVM, to=A57_R1P3),
    Recipe("tcg-a57", saved, "cortex-a57"),
    Recipe("tcg-a57-no-vmdesc", saved, "cortex-a57", machine="virt-7.2" + NO_VMDESC),
    Recipe("tcg-a72", saved, A72),
    Recipe("tcg-a72-no-vmdesc", saved, A72, machine="virt-7.2" + NO_VMDESC),
    Recipe("tcg-a57-live", completed, "cortex-a57"),
    Recipe("tcg-a57-postcopy", postcopied, "cortex-a57"),
    Recipe("tcg-q35", saved, "qemu64", machine="pc-q35-7.2", binary="qemu-system-x86_64", extra=NO_BIOS),
)


# --- the manifest


def write_manifest(lines: Mapping[str, Capture]) -> None:
    """Write the lines of what there is a recipe for, in the recipes' order."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(field.name if field.name != "midr" else "MIDR_EL1" for field in fields(Capture))
    writer.writerows(asdict(lines[recipe.name]).values() for recipe in RECIPES if recipe.name in lines)
    write(MANIFEST, text.getvalue().encode())


def write(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole, or as it was before."""
    try:
        with complete_file(str(path)) as file:
            file.write(data)
    except ProxyError as error:
        raise LabError(str(error)) from error


def midr_of(stream: bytes) -> str:
    """Return MIDR_EL1 of vCPU 0, found by the layout alone: the parser is held against it."""
    _, found, body = stream.rpartition(b"\x03cpu" + struct.pack(">II", 0, 22))
    if not found:
        return NOTHING
    try:
        (count,) = struct.unpack_from(">I", body, 568)
        numbers = struct.unpack_from(f">{2 * count}Q", body, 572)
    except struct.error:  # of a refused one, this may not have been sent
        return NOTHING
    values = dict(zip(numbers[:count], numbers[count:], strict=True))
    return f"{values[MIDR_EL1]:#x}" if MIDR_EL1 in values else NOTHING


# --- recording


async def record(recipe: Recipe) -> Capture:
    """Record a stream into its file and return its line."""
    with tempfile.TemporaryDirectory(prefix="vmstate-captures-") as folder:
        async with running_host_of(recipe, recipe.cpu) as host:
            linux = NOTHING if host is None else await kernel(host)
            recording = await recipe.way(recipe, Path(folder), host)
    packed = lzma.compress(recording.stream, preset=9)
    path = CAPTURES / f"{recipe.name}.xz"
    write(path, packed)
    say(f"{recipe.name}: {recording.outcome}, {len(recording.stream):,} bytes, {len(packed):,} in the file")
    return Capture(
        file=path.name,
        outcome=recording.outcome,
        qemu=recording.qemu,
        linux=linux,
        accelerator=recipe.accelerator,
        cpu=recipe.cpu,
        machine=recipe.machine.partition(",")[0],
        vcpus=str(recipe.smp),
        midr=midr_of(recording.stream),
        capabilities=",".join(recording.capabilities) or NOTHING,
        vmdesc="yes" if recording.stream.endswith(b"}") else "no",
        command=recording.command,
        sha256=hashlib.sha256(packed).hexdigest(),
    )


async def kernel(host: Host) -> str:
    """Return the version of a host's kernel; `uname -r` gives Debian's ABI instead."""
    said = (await host.run(["uname", "-v"])).stdout
    if (found := re.search(r"Debian ([0-9.]+)", said)) is None:
        raise LabError(f"host {host} does not say which Linux it runs: {said}")
    return found[1]


async def record_all(recipes: Iterable[Recipe]) -> None:
    """Record one after the other; each is in the manifest once it is there."""
    lines = {capture.name: capture for capture in read_manifest()}
    for recipe in recipes:
        say(f"{recipe.name}: recording {recipe.arguments}")
        lines[recipe.name] = await record(recipe)
        write_manifest(lines)


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, flush=True)


def main() -> int:
    """Record what was asked for; return 1 if something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.captures", description="Record streams into captures/.")
    names = [recipe.name for recipe in RECIPES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to record (default: all): {', '.join(names)}")
    wanted = parser.parse_args().names or names
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"there is no recipe for {', '.join(unknown)}; there are: {', '.join(names)}")
    recipes = [recipe for recipe in RECIPES if recipe.name in wanted]
    failed = 0
    try:
        for suite in sorted({recipe.suite for recipe in recipes if recipe.suite is not None}):
            host_image(suite, say)
        trio.run(record_all, recipes)
    except* LabError as group:
        failed = 1
        for error in leaves(group):
            say(f"captures: {error}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
