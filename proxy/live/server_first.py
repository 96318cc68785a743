"""Redirected connections that are no migrations: those on which the destination speaks first, as NBD servers do.

libvirt moves a guest's disks over NBD, and takes the NBD server's port from the range of the migrations, unless it is
told another one (source: libvirt `src/qemu/qemu_migration.c`, qemuMigrationDstStartNBDServer). An NBD client waits for
the server's greeting (source: NBD `doc/proto.md`, "Handshake phase"); the source of a migration speaks at once, and its
destination never before it. So what stays silent is dialled on, as it would have been without a proxy, and whoever
speaks first says what it is.
"""

from typing import TYPE_CHECKING, Final

import trio

from formats.channels.nbd import CLIENT_OPENING, asks_for_tls
from proxy.errors import RefusedError
from proxy.net.connection import SocketConnection
from proxy.net.pumps import pass_on, together

if TYPE_CHECKING:
    from proxy.net.connection import Connection

SILENCE: Final = 1.0
"""Seconds in which the source of a migration has begun to speak, if nothing holds it up."""


async def wait_first_word(destination: "Connection") -> None:
    """Wait for the destination's first bytes, or its end, and leave them where they are."""
    assert isinstance(destination, SocketConnection), "only TCP connections are redirected"
    await trio.lowlevel.wait_readable(destination.socket)


async def carry(source: "Connection", destination: "Connection", *, tls_only: bool = False) -> None:
    """Pass bytes both ways, as they are, to the end of both; then close both.

    Args:
        source: The client.
        destination: The server.
        tls_only: Whether the client must be one of NBD that first asks for TLS.

    Raises:
        PeerError: One of them broke; both are reset.
        RefusedError: The client goes on in plain text; both are reset, and nothing that it sent has gone on.
    """
    clean = False
    there = _carry_encrypted if tls_only else _carry
    try:
        await together(there(source, destination), _carry(destination, source))
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


async def _carry_encrypted(client: "Connection", server: "Connection") -> None:
    opening = memoryview(bytearray(CLIENT_OPENING.sizeof()))
    filled = 0
    while filled < len(opening) and (length := await client.receive(opening[filled:])):
        filled += length
    if not asks_for_tls(bytes(opening[:filled])):
        raise RefusedError("it goes on in plain text, and --require-tls has NBD clients ask for TLS first")
    await server.send(opening)
    await _carry(client, server)
