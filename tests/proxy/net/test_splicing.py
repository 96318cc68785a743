"""Bytes that stay in the kernel on their way: all of them arrive, and what breaks is said of the right peer."""

from __future__ import annotations

import errno
import os
import random
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from proxy.errors import PeerError
from proxy.net import splicing
from proxy.net.connection import SocketConnection
from proxy.net.pumps import pass_on
from proxy.net.splicing import splice_on, start_carriers
from tests.proxy.live.test_session import connect, listen, receive, reset, rest, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from tests.proxy.live.test_session import Socket

SOME = random.Random(5).randbytes(9_000_001)


class Pair:
    """Two connections, and the sockets at their far ends."""

    def __init__(self, here: Socket, near: Socket, there: Socket, far: Socket) -> None:
        self.here = SocketConnection("source", here)
        self.near = near
        self.there = SocketConnection("destination", there)
        self.far = far


@asynccontextmanager
async def tcp() -> AsyncIterator[Pair]:
    with trio.fail_after(20), await listen() as listener:
        sockets = []
        for _ in range(2):
            sockets.append(await connect(listener.getsockname()))
            sockets.append((await listener.accept())[0])
        with sockets[0], sockets[1], sockets[2], sockets[3]:
            yield Pair(*sockets)


@asynccontextmanager
async def unix() -> AsyncIterator[Pair]:
    here, near = trio.socket.socketpair()
    there, far = trio.socket.socketpair()
    with trio.fail_after(20), here, near, there, far:
        yield Pair(here, near, there, far)


@asynccontextmanager
async def several(count: int) -> AsyncIterator[list[Pair]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(tcp()) for _ in range(count)]


@pytest.fixture(autouse=True)
def all_have_their_threads() -> None:
    start_carriers()


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("kind", [tcp, unix])
async def test_every_byte_arrives_and_the_end_is_left_to_the_caller(
    kind: Callable[[], AbstractAsyncContextManager[Pair]],
) -> None:
    counted = 0

    def count(length: int) -> None:
        nonlocal counted
        counted += length

    async with kind() as it, trio.open_nursery() as nursery:

        async def carry() -> None:
            assert await splice_on(it.here, it.there, count)
            await it.there.finish()

        async def feed() -> None:
            await send(it.near, SOME)
            it.near.shutdown(socket.SHUT_WR)

        nursery.start_soon(carry)
        nursery.start_soon(feed)
        assert await rest(it.far) == (SOME, "end of file")
        assert counted == len(SOME)
        # The other way is open still.
        await send(it.far, b"back")
        with memoryview(bytearray(9)) as buffer:
            assert bytes(buffer[: await it.there.receive(buffer)]) == b"back"


async def test_small_pieces_do_not_wait_for_more() -> None:
    async with tcp() as it, trio.open_nursery() as nursery:
        nursery.start_soon(splice_on, it.here, it.there)
        for piece in (b"a", b"bc", b"d" * 5000):
            await send(it.near, piece)
            assert await receive(it.far, len(piece)) == piece
        nursery.cancel_scope.cancel()


async def test_a_source_that_is_reset() -> None:
    async with tcp() as it:
        reset(it.near)
        with pytest.raises(PeerError, match="the source broke the connection: Connection reset by peer"):
            await splice_on(it.here, it.there)


async def test_a_destination_that_is_reset() -> None:
    async with tcp() as it, trio.open_nursery() as nursery:
        reset(it.far)
        nursery.start_soon(send, it.near, bytes(100_000))
        with pytest.raises(PeerError, match="the destination broke the connection: "):
            await splice_on(it.here, it.there)


async def test_no_descriptor_is_left_behind() -> None:
    async with tcp() as it:
        before = os.listdir("/proc/self/fd")
        for data in (b"", b"some"):
            await send(it.near, data)
            with trio.move_on_after(0.05) as scope:
                await splice_on(it.here, it.there)
            assert scope.cancelled_caught
            assert os.listdir("/proc/self/fd") == before


CARRIED = 4 + 2
"""Descriptors of a way: its two sockets, the pipe; and of its thread."""

NO_DESCRIPTOR = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
NO_THREAD = RuntimeError("can't start new thread")
NO_MEMORY = MemoryError()


@pytest.mark.parametrize(
    ("where", "name", "error"),
    [
        (os, "dup", NO_DESCRIPTOR),
        (os, "pipe2", NO_DESCRIPTOR),
        (os, "eventfd", NO_DESCRIPTOR),
        (splicing, "start_new_thread", NO_THREAD),
        (splicing, "start_new_thread", NO_MEMORY),
    ],
    ids=["a file twice", "pipes", "a bell", "a thread", "memory"],
)
async def test_what_it_lacks_something_for_is_copied(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, error: Exception
) -> None:
    def lacks(*_: object) -> int:
        raise error

    monkeypatch.setattr(splicing, "_CARRIERS", (splicing._Carrier(),))
    async with tcp() as it:
        before = os.listdir("/proc/self/fd")
        await send(it.near, b"some")
        async with trio.open_nursery() as nursery:
            with monkeypatch.context() as lacking:
                lacking.setattr(where, name, lacks)
                nursery.start_soon(pass_on, it.here, it.there)
                assert await receive(it.far, 4) == b"some"
            assert os.listdir("/proc/self/fd") == before
            nursery.cancel_scope.cancel()
        await send(it.near, b"more")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(splice_on, it.here, it.there)
            assert await receive(it.far, 4) == b"more"
            assert len(os.listdir("/proc/self/fd")) == len(before) + CARRIED
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("blocked", [False, True], ids=["while all flows", "while the destination takes nothing"])
async def test_it_can_be_cancelled(blocked: bool) -> None:
    """Then it is not taken for the end of what was to come."""
    async with tcp() as it, trio.open_nursery() as nursery:

        async def feed() -> None:
            while True:
                await send(it.near, SOME)

        async def take() -> None:
            while not blocked:
                await receive(it.far, 100_000)

        nursery.start_soon(feed)
        nursery.start_soon(take)
        with trio.move_on_after(0.2) as scope:
            await splice_on(it.here, it.there)
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_many_ways_share_the_threads_that_there_are() -> None:
    before = threads()
    async with several(3 * (os.cpu_count() or 1)) as pairs, trio.open_nursery() as nursery:
        for it in pairs:
            nursery.start_soon(splice_on, it.here, it.there)
            await send(it.near, b"one")
            assert await receive(it.far, 3) == b"one"
        assert threads() == before
        for number, it in enumerate(pairs):
            await send(it.near, b"%d" % number)
            it.near.shutdown(socket.SHUT_WR)
        for number, it in enumerate(pairs):
            assert await receive(it.far, 1) == b"%d" % number


async def test_a_thread_that_finds_no_memory_goes_on_when_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    turn = splicing._Carrier._turn

    def short(carrier: splicing._Carrier) -> None:
        nonlocal turns
        turns += 1
        if turns < 3:
            raise MemoryError
        turn(carrier)

    monkeypatch.setattr(splicing._Carrier, "_turn", short)
    monkeypatch.setattr(splicing, "_CARRIERS", (splicing._Carrier(),))
    async with tcp() as it, trio.open_nursery() as nursery:
        nursery.start_soon(splice_on, it.here, it.there)
        await send(it.near, b"some")
        assert await receive(it.far, 4) == b"some"
        nursery.cancel_scope.cancel()


async def test_what_fails_on_one_way_does_not_end_the_others() -> None:
    def fail(_: int) -> None:
        raise ArithmeticError

    async with several(1 + 2 * (os.cpu_count() or 1)) as (bad, *pairs), trio.open_nursery() as nursery:
        for it in pairs:
            nursery.start_soon(splice_on, it.here, it.there)
            await send(it.near, b"one")
            assert await receive(it.far, 3) == b"one"
        await send(bad.near, b"one")
        with pytest.raises(ArithmeticError):
            await splice_on(bad.here, bad.there, fail)
        for it in pairs:
            await send(it.near, b"two")
            assert await receive(it.far, 3) == b"two"
        nursery.cancel_scope.cancel()


async def test_sockets_that_the_kernel_cannot_splice(monkeypatch: pytest.MonkeyPatch) -> None:
    def splice(*_: object, **__: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "splice", splice)
    async with tcp() as it, trio.open_nursery() as nursery:

        async def carry() -> None:
            await pass_on(it.here, it.there)
            await it.there.finish()

        nursery.start_soon(carry)
        await send(it.near, SOME[:50_000])
        it.near.close()
        assert await rest(it.far) == (SOME[:50_000], "end of file")
