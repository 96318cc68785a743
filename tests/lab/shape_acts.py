"""What a shape does on the way, and what shows that it was there: coroutines over the two sides of a migration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from tests.lab.guest import TOUCHED_ADDRESS
from tests.lab.qmp import LabError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.lab.shape import Sides


_POLL = 0.05
_REFUSED_BY_THEN = 1.0


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
    # What is refused at its first bytes is over by then. A source that is told to go over just while its connection
    # breaks is paused in postcopy, its guest stopped, with a proxy or without (seen: QEMU 10.0.13).
    await trio.sleep(_REFUSED_BY_THEN)
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
