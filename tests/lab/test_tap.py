"""The tap alone, between two plain sockets."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.lab.tap import Ending, open_tap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.lab.tap import Tap

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@asynccontextmanager
async def tapped(directory: Path) -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream, Tap]]:
    """Give a client and a server with a tap between them."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, open_tap(listener.socket.getsockname()[1], directory) as tap:
        client = await trio.open_tcp_stream("127.0.0.1", tap.port)
        async with client, await listener.accept() as server:
            yield client, server, tap


async def test_half_close_is_carried_over_and_the_answer_comes_back(tmp_path: Path) -> None:
    async with tapped(tmp_path) as (client, server, tap):
        await client.send_all(b"question")
        await client.send_eof()
        assert b"".join([chunk async for chunk in server]) == b"question"
        assert tap.recordings[0].ending is None
        await server.send_all(b"answer")
        await server.send_eof()
        assert b"".join([chunk async for chunk in client]) == b"answer"
        assert await tap.recordings[0].wait() is Ending.CLOSED
        assert tap.recordings[0].forward.read_bytes() == b"question"
        assert tap.recordings[0].backward.read_bytes() == b"answer"


@pytest.mark.parametrize("side", ["client", "server"])
async def test_reset_is_carried_over(side: str, tmp_path: Path) -> None:
    async with tapped(tmp_path) as (client, server, tap):
        first, second = (client, server) if side == "client" else (server, client)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        await first.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await second.receive_some()
        assert await tap.recordings[0].wait() is Ending.RESET


async def test_closing_the_tap_resets_what_still_lives(tmp_path: Path) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        async with open_tap(listener.socket.getsockname()[1], tmp_path) as tap:
            client = await trio.open_tcp_stream("127.0.0.1", tap.port)
            server = await listener.accept()
        async with client, server:
            for stream in client, server:
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
