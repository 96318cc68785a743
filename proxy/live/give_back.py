"""Telling a source that has gone over to postcopy to keep its guest, which the destination does not get.

A mere reset would leave it paused, waiting for a recovery that no destination can give. So it may send all its memory,
and when it then asks whether the destination has the guest, the answer is no. Source: QEMU `migration/migration.c`
(`source_return_path_thread`, `migration_detect_error`, `migration_completion`).
"""

from typing import TYPE_CHECKING, Final

import trio

from formats.channels.return_path import shut
from formats.errors import FormatError
from proxy.errors import PeerError
from proxy.live.channel import swallow

if TYPE_CHECKING:
    from proxy.net.connection import Connection
    from proxy.rewriter.rewriter import Rewriter

_KEEP_IT: Final = 1
"""The value of a SHUT that has the source keep its guest; any but 0 does."""

_PATIENCE: Final = 30.0


async def give_back(source: "Connection", rewriter: "Rewriter", buffer: memoryview) -> bool:
    """Have a source keep its guest; return whether it could be told to.

    Args:
        source: Its connection.
        rewriter: Knows how far its stream has come.
        buffer: What is received into.
    """
    try:
        await _hear_out(source, rewriter, buffer)
        await source.send(shut(_KEEP_IT))
    except (PeerError, FormatError):
        return False
    await swallow(source, _PATIENCE)
    rewriter.report.note(
        "the source was told to keep its guest; if it is left stopped there, 'cont' lets it go on; with --source, "
        "what can be known ahead is refused before the guest stops"
    )
    return True


async def _hear_out(source: "Connection", rewriter: "Rewriter", buffer: memoryview) -> None:
    """Take what the source sends until it has said all."""
    ended = rewriter.abandon()
    while not ended:
        length = 0
        with trio.move_on_after(_PATIENCE):
            length = await source.receive(buffer)
        if not length:
            raise PeerError("source", "went away")
        ended = rewriter.has_ended(buffer[:length])
