"""Sources older than QEMU 6.1, whose return path must not break just when they have sent all.

Such a source looks whether it has a return path when it has sent all, and takes one that broke a moment before for none
at all: it reports the migration as completed, and its guest stands. With the return path still there it waits for the
destination's word, and an end without that word has it go on. So its connection ends a moment after it fell silent.
Source: QEMU 5.2 `migration/migration.c` (`source_return_path_thread` clears `from_dst_file`, `migration_completion`
looks at it); 6.1 looks for the thread instead ("migration: Fix missing join() of rp_thread").
Of 12 migrations that were refused at once, QEMU 5.2 in the lab took 3 for completed.
"""

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from proxy.errors import PeerError

if TYPE_CHECKING:
    from proxy.net.connection import Connection

_SILENCE: Final = 0.2
"""Seconds until a source that has sent all is taken to wait; it needs microseconds, and on an emulated host more."""
_PATIENCE: Final = 5.0
"""Seconds at most, for one that sends on after its end."""
_SOUND: Final = (6, 1)
_MACHINE: Final = re.compile(r"virt-(\d+)\.(\d+)")


def may_be_old(machine: str | None) -> bool:
    """Tell whether a guest's source may be older than QEMU 6.1, which no older one has the machine types of."""
    version = _MACHINE.fullmatch(machine or "")
    return version is None or tuple(map(int, version.groups())) < _SOUND


async def let_wait(machine: str | None) -> None:
    """Let a source that has sent all come to where it waits for an answer, where it may be an old one."""
    if may_be_old(machine):
        await trio.sleep(_SILENCE)


async def fall_silent(source: "Connection", buffer: memoryview) -> None:
    """Let a source that has sent all come to where it waits for an answer; what it sends yet is thrown away.

    Not for one that has more to send: it could go over to postcopy meanwhile. Its next write fails once it is reset.

    Args:
        source: Its connection.
        buffer: What is received into.
    """
    with suppress(PeerError), trio.move_on_after(_PATIENCE):
        length = 1
        while length:
            length = 0
            with trio.move_on_after(_SILENCE):
                length = await source.receive(buffer)
