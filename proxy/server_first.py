"""Redirected connections that are no migrations: those on which the destination speaks first, as NBD servers do.

libvirt moves a guest's disks over NBD, and takes the NBD server's port from the range of the migrations, unless it is
told another one (source: libvirt `src/qemu/qemu_migration.c`, qemuMigrationDstStartNBDServer). An NBD client waits for
the server's greeting (source: NBD `doc/proto.md`, "Handshake phase"); the source of a migration speaks at once, and its
destination never before it. So what stays silent is dialled on, as it would have been without a proxy, and whoever
speaks first says what it is.
"""

from typing import TYPE_CHECKING, Final

import trio

from proxy.connection import SocketConnection
from proxy.pumps import pass_on, together

if TYPE_CHECKING:
    from proxy.connection import Connection

SILENCE: Final = 1.0
"""Seconds in which the source of a migration has begun to speak, if nothing holds it up."""


async def stays_silent(source: "Connection") -> bool:
    """Wait for a source's first bytes, or its end, and leave them where they are; True if there is none in time."""
    with trio.move_on_after(SILENCE) as scope:
        await trio.lowlevel.wait_readable(_socket(source))
    return scope.cancelled_caught


async def destination_speaks_first(source: "Connection", destination: "Connection") -> bool:
    """Wait for the first bytes from either side, and leave them where they are."""
    first: list[Connection] = []
    async with trio.open_nursery() as nursery:

        async def watch(connection: "Connection") -> None:
            await trio.lowlevel.wait_readable(_socket(connection))
            first.append(connection)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch, source)
        nursery.start_soon(watch, destination)
    return source not in first


async def carry(source: "Connection", destination: "Connection") -> None:
    """Pass bytes both ways, as they are, to the end of both; then close both.

    Raises:
        PeerError: One of them broke; both are reset.
    """
    clean = False
    try:
        await together(_carry(source, destination), _carry(destination, source))
        clean = True
    finally:
        for connection in (source, destination):
            if clean:
                connection.close()
            else:
                connection.reset()


async def _carry(here: "Connection", there: "Connection") -> None:
    await pass_on(here, there)
    await there.finish()


def _socket(connection: "Connection") -> trio.socket.SocketType:
    assert isinstance(connection, SocketConnection), "only TCP connections are redirected"
    return connection.socket
