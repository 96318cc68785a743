"""Connections on which the destination speaks first: as they are; where TLS is required, if they ask for it."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from proxy.errors import RefusedError
from proxy.live.server_first import carry
from proxy.net.connection import SocketConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GREETING = b"NBDMAGICIHAVEOPT\x00\x03"
STARTTLS = struct.pack(">I8sII", 3, b"IHAVEOPT", 5, 0)
GO = struct.pack(">I8sII", 3, b"IHAVEOPT", 7, 0)


def pair(peer: str) -> tuple[SocketConnection, trio.SocketStream]:
    near, far = socket.socketpair()
    return (
        SocketConnection(peer, trio.socket.from_stdlib_socket(near)),
        trio.SocketStream(trio.socket.from_stdlib_socket(far)),
    )


@asynccontextmanager
async def carried(*, tls_only: bool) -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream, list[Exception]]]:
    source, client = pair("source")
    destination, server = pair("destination")
    problems: list[Exception] = []

    async def run() -> None:
        try:
            await carry(source, destination, tls_only=tls_only)
        except RefusedError as error:
            problems.append(error)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, client, server:
            nursery.start_soon(run)
            await server.send_all(GREETING)
            assert await client.receive_some() == GREETING
            yield client, server, problems


@pytest.mark.parametrize("tls_only", [False, True])
async def test_a_client_that_asks_for_tls_is_carried(tls_only: bool) -> None:
    async with carried(tls_only=tls_only) as (client, server, problems):
        for piece in (STARTTLS[:7], STARTTLS[7:] + b"hello"):
            await client.send_all(piece)
        got = b""
        while len(got) < len(STARTTLS) + 5:
            got += bytes(await server.receive_some())
        assert got == STARTTLS + b"hello"
        await client.send_eof()
        assert await server.receive_some() == b""
    assert not problems


async def test_a_client_in_plain_text_is_carried_unless_tls_is_required() -> None:
    async with carried(tls_only=False) as (client, server, _):
        await client.send_all(GO)
        assert await server.receive_some() == GO


@pytest.mark.parametrize("words", [GO, STARTTLS[:10]], ids=["another option", "cut"])
async def test_nothing_of_a_client_in_plain_text_goes_on_where_tls_is_required(words: bytes) -> None:
    async with carried(tls_only=True) as (client, server, problems):
        await client.send_all(words)
        await client.send_eof()
        assert await server.receive_some() == b""
    assert "goes on in plain text" in str(problems[0])
