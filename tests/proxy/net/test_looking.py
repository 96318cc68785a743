"""Looking at what came before it is taken: the same bytes, in the same order, and fewer copies."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from proxy.errors import PeerError
from proxy.net import looking
from proxy.net.connection import SocketConnection
from proxy.net.looking import Lookout
from tests.proxy.live.test_session import connect, listen, receive, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio.socket import SocketType as Socket

MUCH = random.Random(1).randbytes(3 << 20)
RESET = struct.pack("ii", 1, 0)


@asynccontextmanager
async def between() -> AsyncIterator[tuple[Socket, Lookout, Socket, SocketConnection]]:
    """Yield a source's socket, what looks, a destination's socket, and the connection to that."""
    async with tcp_pair() as (source, here), tcp_pair() as (there, far):
        destination = SocketConnection("destination", there)
        with trio.fail_after(20), Lookout(SocketConnection("source", here), destination) as lookout:
            yield source, lookout, far, destination


@asynccontextmanager
async def tcp_pair() -> AsyncIterator[tuple[Socket, Socket]]:
    with await listen() as server, await connect(server.getsockname()) as here:
        there, _ = await server.accept()
        with there:
            yield here, there


async def until_looked_at(lookout: Lookout, buffer: memoryview) -> tuple[bytes, int]:
    """Receive until something is looked at; return what was received before, and how much is looked at."""
    before = b""
    while True:
        length = await lookout.receive(buffer, may_look=True)
        if lookout.looked_at:
            return before, length
        before += bytes(buffer[:length])


async def until_the_end(lookout: Lookout, buffer: memoryview) -> None:
    while await lookout.receive(buffer, may_look=True):
        if lookout.looked_at:
            await lookout.move_on(lookout.looked_at)


async def test_what_is_looked_at_goes_on_in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = os.write

    def write_and_count(file: int, data: memoryview) -> int:
        written.append(len(data))
        return write(file, data)

    monkeypatch.setattr(os, "write", write_and_count)
    buffer = memoryview(bytearray(1 << 20))
    seen = bytearray()
    async with between() as (source, lookout, far, destination), trio.open_nursery() as nursery:

        async def carry() -> None:
            while length := await lookout.receive(buffer, may_look=True):
                seen.extend(buffer[:length])
                if lookout.looked_at:
                    assert length == lookout.looked_at
                    assert await lookout.move_on(length)
                    assert not lookout.looked_at
                else:
                    await destination.send(buffer[:length])

        async def give() -> None:
            await send(source, MUCH)
            source.shutdown(socket.SHUT_WR)

        nursery.start_soon(carry)
        nursery.start_soon(give)
        assert await receive(far, len(MUCH)) == MUCH
    assert seen == MUCH
    # The first piece is received, as nobody knows that much comes; so may be the last one.
    assert sum(written) < len(MUCH) // 2


async def test_what_is_not_moved_on_is_taken() -> None:
    buffer = memoryview(bytearray(1 << 20))
    async with between() as (source, lookout, far, _), trio.open_nursery() as nursery:
        nursery.start_soon(send, source, MUCH)
        before, length = await until_looked_at(lookout, buffer)
        at = len(before)
        looked_at = bytes(buffer[:length])
        assert looked_at == MUCH[at : at + length]
        assert await lookout.move_on(1000)
        await lookout.take_rest()
        assert bytes(buffer[:length]) == looked_at
        assert await receive(far, 1000) == looked_at[:1000]
        rest = b""
        while len(rest) < len(MUCH) - at - length:
            rest += bytes(buffer[: await lookout.receive(buffer, may_look=False)])
            assert not lookout.looked_at
        assert rest == MUCH[at + length :]


async def test_small_pieces_are_received() -> None:
    buffer = memoryview(bytearray(1 << 20))
    async with between() as (source, lookout, _, _):
        for piece in b"one", b"two":
            await send(source, piece)
            assert bytes(buffer[: await lookout.receive(buffer, may_look=True)]) == piece
            assert not lookout.looked_at
        source.shutdown(socket.SHUT_WR)
        assert await lookout.receive(buffer, may_look=True) == 0


def no_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    def pipe2(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe2", pipe2)


def unable(monkeypatch: pytest.MonkeyPatch) -> None:
    def splice(*_: object, **__: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "splice", splice)


@pytest.mark.parametrize("lacking", [no_pipes, unable])
async def test_a_kernel_that_cannot_do_it_or_has_no_descriptors(
    monkeypatch: pytest.MonkeyPatch, lacking: Callable[[pytest.MonkeyPatch], None]
) -> None:
    lacking(monkeypatch)
    buffer = memoryview(bytearray(1 << 20))
    got, refused = b"", 0
    async with between() as (source, lookout, _, _), trio.open_nursery() as nursery:
        nursery.start_soon(send, source, MUCH)
        while len(got) < len(MUCH):
            got += bytes(buffer[: await lookout.receive(buffer, may_look=True)])
            if lookout.looked_at:
                assert not await lookout.move_on(lookout.looked_at)
                refused += 1
                await lookout.take_rest()
    assert got == MUCH
    assert refused == (0 if lacking is no_pipes else 1)


async def test_a_source_that_is_gone_after_it_was_looked_at() -> None:
    """What Linux has received of it stays there; the error comes after it."""
    buffer = memoryview(bytearray(1 << 20))
    async with between() as (source, lookout, far, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, source, MUCH)
            _, length = await until_looked_at(lookout, buffer)
            nursery.cancel_scope.cancel()
        source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        source.close()
        assert await lookout.move_on(length // 2)
        assert await receive(far, length // 2) == bytes(buffer[: length // 2])
        await lookout.take_rest()
        with pytest.raises(PeerError, match="the source broke the connection"):
            await until_the_end(lookout, buffer)


async def test_a_destination_that_is_gone() -> None:
    buffer = memoryview(bytearray(1 << 20))
    async with between() as (source, lookout, far, _), trio.open_nursery() as nursery:
        nursery.start_soon(send, source, MUCH)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        far.close()
        with pytest.raises(PeerError, match="the destination broke the connection"):
            await until_the_end(lookout, buffer)
        nursery.cancel_scope.cancel()


async def test_nothing_but_plain_tcp_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_MUCH", 1)
    here, near = trio.socket.socketpair()
    buffer = memoryview(bytearray(1 << 20))
    source = SocketConnection("source", here)
    with here, near, Lookout(source, source) as lookout:
        for _ in range(2):
            await send(near, b"bytes")
            length = await lookout.receive(buffer, may_look=True)
            assert bytes(buffer[:length]) == b"bytes"
            assert not lookout.looked_at
