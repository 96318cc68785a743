"""The shapes that a migration can take: QEMU's capabilities, parameters and machine properties, each as a case.

A shape is data: what to turn on, and where one has to be told when to act, a coroutine. `tests.lab.crossing` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from tests.lab.guest import TOUCHED_ADDRESS, x86_counter_guest
from tests.lab.qmp import LabError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from tests.lab.tap import Tap
    from tests.lab.vm import Vm

MACHINE = "virt-5.2"
"""The oldest machine type that all QEMUs of `tests.lab.qemus` know."""

SLOW = 4 << 20
"""Bytes a second: slow enough that a migration can be caught under way."""

_POLL = 0.05


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


def counted(*path: str) -> Callable[[Sides], Awaitable[None]]:
    """Make a check that a number in the source's `query-migrate` is above zero."""

    async def check(sides: Sides) -> None:
        value: Any = await sides.source.qmp("query-migrate")
        for key in path:
            value = value.get(key, {}) if isinstance(value, dict) else None
        shown(bool(value), f"query-migrate has no {'/'.join(path)}")

    return check


def connections(count: int) -> Callable[[Sides], Awaitable[None]]:
    """Make a check that there were at least so many connections."""

    async def check(sides: Sides) -> None:
        shown(sides.connections >= count, f"{sides.connections} connections instead of {count}")

    return check


def sent(words: bytes) -> Callable[[Sides], Awaitable[None]]:
    """Make a check that the stream holds some bytes."""

    async def check(sides: Sides) -> None:
        shown(words in sides.stream, f"the stream does not hold {words!r}")

    return check


def not_sent(words: bytes) -> Callable[[Sides], Awaitable[None]]:
    """Make a check that the stream does not hold some bytes."""

    async def check(sides: Sides) -> None:
        shown(words not in sides.stream, f"the stream holds {words!r}")

    return check


def shown(showed: bool, otherwise: str) -> None:
    """Raise unless what was turned on has shown itself.

    Raises:
        LabError: it has not; then the case does not try what it is called after.
    """
    if not showed:
        raise LabError(f"not in use: {otherwise}")


# -- acting while it is under way -----------------------------------------------------------------------------------


async def speed_up(sides: Sides) -> None:
    """Let a migration that was slow go on as fast as it can."""
    await sides.source.qmp("migrate-set-parameters", max_bandwidth=1 << 40)


async def wait_for(sides: Sides, key: str, value: object = None, limit: float = 20) -> None:
    """Wait until the source's `query-migrate` has a key, or a key with a value, or the migration has ended."""
    with trio.move_on_after(limit):
        while True:
            reply = await sides.source.qmp("query-migrate")
            found = reply.get(key)
            if found == value if value is not None else found:
                return
            if reply.get("status") in ("completed", "failed", "cancelled"):
                return
            await trio.sleep(_POLL)
    raise LabError(f"query-migrate did not come to {key} {value or ''} within {limit} s")


async def under_way(sides: Sides) -> None:
    """Wait until memory has begun to pass, or the migration has ended."""
    with trio.move_on_after(20):
        while True:
            reply = await sides.source.qmp("query-migrate")
            if reply.get("ram", {}).get("transferred", 0) > 1 << 20 or reply.get("status") not in ("setup", "active"):
                return
            await trio.sleep(_POLL)


async def resend_then_hurry(sides: Sides) -> None:
    """Wait for the second round over the memory, in which pages go that were sent before."""
    with trio.move_on_after(20):
        while True:
            reply = await sides.source.qmp("query-migrate")
            if reply.get("ram", {}).get("dirty-sync-count", 0) > 2 or reply.get("status") not in ("setup", "active"):
                break
            await trio.sleep(_POLL)
    await speed_up(sides)


async def throttle_then_hurry(sides: Sides) -> None:
    """Wait until the guest is slowed down."""
    await wait_for(sides, "cpu-throttle-percentage")
    await speed_up(sides)


async def go_on_before_switchover(sides: Sides) -> None:
    """Wait for the pause before the switchover, and end it."""
    await wait_for(sides, "status", "pre-switchover")
    if (await sides.source.qmp("query-migrate")).get("status") == "pre-switchover":
        await sides.source.qmp("migrate-continue", state="pre-switchover")


async def go_over_to_postcopy(sides: Sides) -> None:
    """Have the guest run at the destination while its memory is still at the source."""
    await under_way(sides)
    if (await sides.source.qmp("query-migrate")).get("status") == "active":
        await sides.source.qmp("migrate-start-postcopy")
        await speed_up(sides)


async def went_postcopy(sides: Sides) -> None:
    """Check that it did."""
    shown(
        bool((await sides.source.qmp("query-migrate")).get("ram", {}).get("postcopy-bytes", 1)), "no page in postcopy"
    )
    names = [event["data"].get("status") for event in sides.source.events if event["event"] == "MIGRATION"]
    shown(not names or "postcopy-active" in names, "the source was not in postcopy")


async def colo_is_over(sides: Sides) -> None:
    """Wait until the migration has failed, or the two guests of COLO have lost sight of each other; leave the first."""
    with trio.move_on_after(20):
        while not any(event["event"] == "COLO_EXIT" for event in sides.source.events):
            reply = await sides.source.qmp("query-migrate")
            if reply.get("status") in ("failed", "completed"):
                return
            await trio.sleep(_POLL)
        await sides.destination.qmp("quit")


async def resume(sides: Sides) -> None:
    """Continue a guest that arrives paused."""
    if await sides.destination.status() in ("paused", "suspended"):
        await sides.destination.qmp("cont")


# -- block devices --------------------------------------------------------------------------------------------------

NULL_DISK = (
    *("-blockdev", "driver=null-co,node-name=disk0,size=67108864,read-zeroes=on"),
    *("-device", "virtio-blk-pci,drive=disk0"),
)
COPIED_DISK = (
    *("-drive", "if=none,id=disk0,format=raw,file={folder}/disk.raw"),
    *("-device", "virtio-blk-pci,drive=disk0"),
)
_DISK_BYTES = 1 << 20
_DISK_CONTENT = b"moved along with its guest"


async def add_bitmap(sides: Sides) -> None:
    """Give the source's disk a dirty bitmap."""
    await sides.source.qmp("block-dirty-bitmap-add", node="disk0", name="bitmap0")


async def bitmap_arrived(sides: Sides) -> None:
    """Check that the destination's disk has it."""
    nodes = await sides.destination.qmp("query-named-block-nodes")
    names = [bitmap.get("name") for node in nodes for bitmap in node.get("dirty-bitmaps", ())]
    shown("bitmap0" in names, "the bitmap did not arrive")


def make_disks(folder: Path, destination_folder: Path) -> None:
    """Make the disks that COPIED_DISK wants: the source's has something in it."""
    (folder / "disk.raw").write_bytes(_DISK_CONTENT.ljust(_DISK_BYTES, b"\0"))
    (destination_folder / "disk.raw").write_bytes(bytes(_DISK_BYTES))


async def disk_arrived(sides: Sides) -> None:
    """Check that the destination's disk has it, too."""
    found = (sides.destination_folder / "disk.raw").read_bytes()
    shown(found.startswith(_DISK_CONTENT), "the disk did not arrive")


async def memory_stayed(sides: Sides) -> None:
    """Check that shared memory was not sent: the guest's pages are as many MiB as the whole stream is not."""
    size = len(sides.stream)
    shown(size < 1000 * 4096, f"{size} bytes for memory that both sides share")


async def touched(sides: Sides) -> None:
    """Check that a page came over a file as it was."""
    shown(await sides.destination.read_u64(TOUCHED_ADDRESS) == TOUCHED_ADDRESS, "the first page is not what it was")


def _multifd(name: str, parameters: Mapping[str, Any] | None = None) -> Shape:
    return Shape(
        name,
        capabilities={"multifd": True},
        parameters={"multifd-channels": 2, **(parameters or {})},
        pages=2000,
        check=connections(3),
    )


def _postcopy(
    name: str, *capabilities: str, drive: Callable[[Sides], Awaitable[None]] | None = None, known: bool = False
) -> Shape:
    return Shape(
        name,
        capabilities={"postcopy-ram": True, **dict.fromkeys(capabilities, True)},
        source_parameters={"max-bandwidth": SLOW} if drive else {},
        pages=4000,
        drive=drive,
        check=went_postcopy if drive else None,
        known=known,
    )


SHAPES = (
    Shape("plain, with return-path", check=not_sent(b"configuration/capabilities")),
    Shape("without return-path", return_path=False),
    Shape("without return-path, allowed", return_path=False, options=("--allow-no-return-path",)),
    Shape("4 vCPUs", smp=4),
    Shape("oldest machine type", machine="oldest"),
    Shape("newest machine type", machine="newest"),
    Shape("send-configuration=off", extra=("-global", "migration.send-configuration=off"), check=not_sent(b"virt-5.2")),
    Shape("send-section-footer=off", extra=("-global", "migration.send-section-footer=off")),
    Shape("suppress-vmdesc=on", properties=",suppress-vmdesc=on", check=not_sent(b'"page_size"')),
    Shape(
        "suppress-vmdesc=on, send-section-footer=off",
        properties=",suppress-vmdesc=on",
        extra=("-global", "migration.send-section-footer=off"),
    ),
    Shape(
        "xbzrle",
        capabilities={"xbzrle": True},
        source_parameters={"max-bandwidth": SLOW},
        pages=1000,
        dirty=True,
        drive=resend_then_hurry,
        check=counted("xbzrle-cache", "pages"),
    ),
    Shape("compress", capabilities={"compress": True}, check=counted("compression", "pages")),
    Shape(
        "auto-converge",
        capabilities={"auto-converge": True},
        source_parameters={"max-bandwidth": SLOW},
        pages=1000,
        dirty=True,
        drive=throttle_then_hurry,
    ),
    Shape("events", capabilities={"events": True}),
    Shape("release-ram", capabilities={"release-ram": True}),
    Shape("late-block-activate", capabilities={"late-block-activate": True}, extra=NULL_DISK),
    Shape(
        "zero-blocks, block",
        source_capabilities={"block": True, "zero-blocks": True},
        extra=COPIED_DISK,
        check=disk_arrived,
    ),
    Shape(
        "dirty-bitmaps",
        capabilities={"dirty-bitmaps": True},
        extra=NULL_DISK,
        prepare=add_bitmap,
        check=bitmap_arrived,
    ),
    Shape(
        "validate-uuid",
        capabilities={"validate-uuid": True},
        extra=("-uuid", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"),
        check=sent(b"configuration/uuid"),
    ),
    Shape(
        "x-ignore-shared",
        capabilities={"x-ignore-shared": True},
        properties=",memory-backend=ram",
        extra=("-object", "memory-backend-file,id=ram,size=64M,share=on,mem-path={shared}/ram"),
        check=memory_stayed,
    ),
    Shape(
        "pause-before-switchover",
        capabilities={"pause-before-switchover": True},
        drive=go_on_before_switchover,
    ),
    Shape("switchover-ack", capabilities={"switchover-ack": True, "return-path": True}),
    Shape("dirty-limit", capabilities={"dirty-limit": True}),
    Shape("zero-page-detection=none", parameters={"zero-page-detection": "none"}),
    Shape("zero-page-detection=legacy", parameters={"zero-page-detection": "legacy"}),
    Shape("zero-page-detection=multifd", parameters={"zero-page-detection": "multifd"}),
    _multifd("multifd"),
    _multifd("multifd, zlib", {"multifd-compression": "zlib"}),
    _multifd("multifd, zstd", {"multifd-compression": "zstd"}),
    _multifd("multifd, zero-page-detection=multifd", {"zero-page-detection": "multifd"}),
    Shape(
        "multifd, zero-copy-send",
        capabilities={"multifd": True},
        source_capabilities={"zero-copy-send": True},
        parameters={"multifd-channels": 2},
        pages=2000,
        check=connections(3),
    ),
    _postcopy("postcopy-ram, not gone over to"),
    _postcopy("postcopy-ram", drive=go_over_to_postcopy),
    _postcopy("postcopy-ram, postcopy-preempt", "postcopy-preempt", drive=go_over_to_postcopy),
    _postcopy("postcopy-ram, postcopy-blocktime", "postcopy-blocktime", drive=go_over_to_postcopy),
    _postcopy("postcopy-ram, with --source", drive=go_over_to_postcopy, known=True),
    _postcopy("postcopy-ram, release-ram, with --source", "release-ram", drive=go_over_to_postcopy, known=True),
    Shape(
        "x-colo",
        capabilities={"x-colo": True, "return-path": True},
        source_parameters={"x-checkpoint-delay": 500},
        drive=colo_is_over,
    ),
    Shape("rdma", scheme="rdma"),
    Shape("rdma-pin-all, over tcp", capabilities={"rdma-pin-all": True}),
    Shape("mode=cpr-reboot", parameters={"mode": "cpr-reboot"}, arrive=resume),
    Shape("mapped-ram, to a socket", capabilities={"mapped-ram": True}),
    Shape(
        "mapped-ram, to a file",
        capabilities={"mapped-ram": True},
        return_path=False,
        via="file:{path}",
        check=touched,
    ),
    Shape("exec: to a file", return_path=False, via="exec:cat {redirection} '{path}'", check=touched),
    Shape(
        "background-snapshot",
        source_capabilities={"background-snapshot": True},
        return_path=False,
        via="exec:cat {redirection} '{path}'",
        check=touched,
    ),
    Shape("x86_64 guest on q35", machine="pc-q35-5.2", bios=x86_counter_guest(), arm64=False),
    Shape(
        "x86_64 guest on q35, multifd",
        capabilities={"multifd": True},
        parameters={"multifd-channels": 2},
        machine="pc-q35-5.2",
        bios=x86_counter_guest(),
        arm64=False,
        check=connections(3),
    ),
)
"""All cases, in the table's order."""
