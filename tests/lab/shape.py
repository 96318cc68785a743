"""What a migration can have turned on: a shape, and the two sides of a migration that has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from tests.lab.tap import Tap
    from tests.lab.vm import Vm

MACHINE = "virt-5.2"
"""The oldest machine type that all QEMUs of `tests.lab.qemus` know."""

SLOW = 4 << 20
"""Bytes a second: slow enough that a migration can be caught under way."""


@dataclass(frozen=True, slots=True)
class Sides:
    """What a shape's coroutines get to work with.

    Attributes:
        source: where the guest is.
        destination: where it goes.
        tap: before the destination, recording; None when there is no connection, but a file.
        folder: the source's files; the destination's are in `destination_folder`.
    """

    source: Vm
    destination: Vm
    tap: Tap | None
    folder: Path
    destination_folder: Path

    @property
    def stream(self) -> bytes:
        """What came to the destination on its main channel."""
        assert self.tap is not None
        streams = [recording.forward.read_bytes() for recording in self.tap.recordings]
        return next(stream for stream in streams if stream.startswith(b"QEVM"))

    @property
    def connections(self) -> int:
        """How many connections the destination took."""
        assert self.tap is not None
        return len(self.tap.recordings)


@dataclass(frozen=True, slots=True)
class Shape:
    """One case.

    Attributes:
        name: what the table calls it.
        capabilities: turned on on both sides.
        source_capabilities: turned on on the source only.
        parameters: set on both sides.
        source_parameters: set on the source only.
        machine: the machine type; "oldest" and "newest" stand for those of the source's QEMU.
        properties: further machine properties, such as ",suppress-vmdesc=on".
        extra: further arguments of both QEMUs; {folder} is a side's own folder, {shared} one that both see.
        smp: number of vCPUs.
        pages: 4 KiB pages that the guest fills.
        dirty: whether it fills them again and again.
        return_path: whether the source waits for the destination's word.
        options: further options of the proxy.
        known: whether the proxy is told beforehand, by --source, what registers the source has.
        via: "tcp", or for what goes to a file, QEMU's URI with {path}; then `rewrite` does the proxy's part.
        scheme: what the source puts before HOST:PORT.
        bios: firmware in place of the guest, for x86.
        arm64: whether there are registers to judge; without, only the unchanged passage is tried.
        prepare: called before the migration.
        drive: called while it is under way.
        arrive: called when all is sent, to have the guest run.
        check: called after a guest arrived: whether what was turned on has shown itself.
    """

    name: str
    capabilities: Mapping[str, bool] = field(default_factory=dict)
    source_capabilities: Mapping[str, bool] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    source_parameters: Mapping[str, Any] = field(default_factory=dict)
    machine: str = MACHINE
    properties: str = ""
    extra: tuple[str, ...] = ()
    smp: int = 1
    pages: int = 1000
    dirty: bool = False
    return_path: bool = True
    options: tuple[str, ...] = ()
    known: bool = False
    via: str = "tcp"
    scheme: str = "tcp"
    bios: bytes | None = None
    arm64: bool = True
    prepare: Callable[[Sides], Awaitable[None]] | None = None
    drive: Callable[[Sides], Awaitable[None]] | None = None
    arrive: Callable[[Sides], Awaitable[None]] | None = None
    check: Callable[[Sides], Awaitable[None]] | None = None


# -- telling that a capability really was in use --------------------------------------------------------------------
