"""A channel beside the main connection, over real loopback sockets whose far ends the test plays."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from proxy.errors import PeerError
from proxy.live.channel import Channel
from proxy.net.connection import SocketConnection
from tests.proxy.live.test_session import connect, listen, receive, rest, send

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.net.connection import Connection
    from tests.proxy.live.test_session import Socket

HELLO = b"hello"


@pytest.fixture
def patient_clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """Let the threads that carry bytes finish what they are at before the clock jumps."""
    autojump_clock.autojump_threshold = 0.1
    return autojump_clock


class Played:
    """A channel with both of its peers' ends."""

    def __init__(self, channel: Channel, source: Socket, destination: Socket) -> None:
        self.channel = channel
        self.source = source
        self.destination = destination
        self.lost = ""


@asynccontextmanager
async def channel() -> AsyncIterator[Played]:
    """Run a channel whose opening the destination got; when the block is left, it must end within ten seconds."""
    with (
        trio.fail_after(10),
        await listen() as front,
        await listen() as back,
        await connect(front.getsockname()) as source,
    ):
        accepted, _ = await front.accept()

        async def dial() -> Connection:
            return SocketConnection("destination", await connect(back.getsockname()))

        it = Channel(dial, SocketConnection("source", accepted), trio.Event())
        async with trio.open_nursery() as nursery:
            played: Played | None = None

            async def run() -> None:
                try:
                    await it.run(HELLO)
                except PeerError as error:
                    assert played is not None
                    played.lost = str(error)

            nursery.start_soon(run)
            destination, _ = await back.accept()
            with destination:
                assert await receive(destination, len(HELLO)) == HELLO
                played = Played(it, source, destination)
                yield played
        assert accepted.fileno() == -1


async def test_what_was_sent_before_the_end_of_the_main_one_passes() -> None:
    """A destination that still waits for it, the main connection reset, would answer its monitor no more."""
    async with channel() as it:
        await send(it.source, b"pages")
        it.channel.end(clean=False)
        await send(it.source, b"sync")
        it.source.close()
        assert await rest(it.destination) == (b"pagessync", "end of file")
        it.destination.close()
    assert not it.lost


async def test_a_channel_that_goes_on_after_the_main_one_is_reset(patient_clock: trio.testing.MockClock) -> None:
    async with channel() as it:
        it.channel.end(clean=False)
        assert (await rest(it.destination))[1] == "reset"
        assert (await rest(it.source))[1] == "reset"


async def test_a_channel_that_is_cut_is_reset_at_once() -> None:
    async with channel() as it:
        it.channel.cut()
        assert (await rest(it.destination))[1] == "reset"
        assert (await rest(it.source))[1] == "reset"


async def test_a_channel_that_ends_before_the_main_one_is_lost(patient_clock: trio.testing.MockClock) -> None:
    async with channel() as it:
        it.source.close()
        assert (await rest(it.destination))[1] == "reset"
    assert it.lost == "the source ended it before the migration was complete"
