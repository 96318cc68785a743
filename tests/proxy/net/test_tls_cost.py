"""How much is done for a TLS record: counted calls, so that no clock decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from proxy.net.connection import SocketConnection
from proxy.net.tls.roles import ClientTls, ServerTls
from tests.lab.pki import Authority
from tests.proxy.live.test_hot_path import counted
from tests.proxy.live.test_session import connect, listen

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.net.connection import Connection

RECORD = 1 << 14


async def test_calls_for_a_record(tmp_path: Path) -> None:
    """OpenSSL gives out one record in a call, so that each has some; and no more than these."""
    folder = Authority().folder(tmp_path / "pki", "server", "client")
    with await listen() as server:
        there = await connect(server.getsockname())
        accepted, _ = await server.accept()
        ends: dict[str, Connection] = {}

        async def welcome() -> None:
            ends["here"] = await ServerTls(folder).welcome(SocketConnection("source", accepted))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(welcome)
                ends["there"] = await ClientTls(folder).greet(SocketConnection("peer", there), "127.0.0.1")
            here, peer = ends["here"], ends["there"]
            few, many = [await calls(here, peer, records) for records in (4, 12)]
        here.reset()
        peer.reset()
    assert (many - few) / 8 <= 8


async def calls(here: Connection, peer: Connection, records: int) -> int:
    """Return how many calls it takes to receive so many records that have come, and to send them on."""
    buffer = memoryview(bytearray(records * RECORD))
    await peer.send(bytes(len(buffer)))
    with counted() as found:
        received = 0
        while received < len(buffer):
            received += await here.receive(buffer[received:])
        await here.send(buffer)
    returned = 0
    while returned < len(buffer):
        returned += await peer.receive(buffer[returned:])
    return found.total()
