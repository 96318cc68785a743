"""Pumps: what carries bytes one way, several of which run together."""

from typing import TYPE_CHECKING

import trio

from formats.errors import FormatError
from proxy.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Awaitable


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
