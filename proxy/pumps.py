"""Pumps: what carries bytes one way, several of which run together."""

from typing import TYPE_CHECKING, Final

import trio

from formats.errors import FormatError
from proxy.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from proxy.connection import Connection

_BUFFER: Final = 1 << 20


async def pass_on(here: "Connection", there: "Connection") -> None:
    """Pass bytes on, as they are, to the end of `here`, which is not carried over.

    Raises:
        PeerError: One of the two broke.
    """
    with memoryview(bytearray(_BUFFER)) as buffer:
        while length := await here.receive(buffer):
            await there.send(buffer[:length])


async def together(*pumps: "Awaitable[None]") -> None:
    """Run pumps until all have ended.

    Raises:
        ProxyError, FormatError: The first one's that failed, alone; the others were cancelled.
    """
    problem: list[ProxyError | FormatError] = []
    async with trio.open_nursery() as nursery:

        async def guarded(pump: "Awaitable[None]") -> None:
            try:
                await pump
            except (ProxyError, FormatError) as error:
                problem.append(error)
                nursery.cancel_scope.cancel()

        for pump in pumps:
            nursery.start_soon(guarded, pump)
    if problem:
        raise problem[0]
