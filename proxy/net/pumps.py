"""Pumps: what carries bytes one way, several of which run together."""

from typing import TYPE_CHECKING, Final

import trio

from proxy.net.connection import SocketConnection
from proxy.net.splicing import splice_on

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.net.connection import Connection

_BUFFER: Final = 1 << 20


async def pass_on(here: "Connection", there: "Connection", on_bytes: "Callable[[int], None]" = lambda _: None) -> None:
    """Pass bytes on, as they are, to the end of `here`, which is not carried over.

    Args:
        here: Where they come from.
        there: Where they go.
        on_bytes: Is told how many have gone on, each time.

    Raises:
        PeerError: One of the two broke.
    """
    if (
        isinstance(here, SocketConnection)
        and isinstance(there, SocketConnection)
        and await splice_on(here, there, on_bytes)
    ):
        return
    with memoryview(bytearray(_BUFFER)) as buffer:
        while length := await here.receive(buffer):
            await there.send(buffer[:length])
            on_bytes(length)


async def together(*pumps: "Awaitable[None]") -> None:
    """Run pumps until all have ended.

    Raises:
        Exception: The first one's that failed, alone; the others were cancelled.
    """
    problem: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def guarded(pump: "Awaitable[None]") -> None:
            try:
                await pump
            except Exception as error:
                problem.append(error)
                nursery.cancel_scope.cancel()

        for pump in pumps:
            nursery.start_soon(guarded, pump)
    if problem:
        raise problem[0]
