"""Work in a thread, while other migrations go on."""

import math
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from proxy.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

LIMIT: Final = 60.0
"""Seconds that are enough for whatever is not bounded otherwise."""


async def aside(what: str, work: "Callable[[], T]", limit: float | None = LIMIT) -> T:
    """Do work in a thread and return what it returns.

    It is not waited for without end: where memory is short, a thread ends before it has begun, and nobody is told.

    Args:
        what: What is done, for the error.
        work: Does it. It may still go on after an error; what it returns is thrown away then.
        limit: Seconds; None for no limit.

    Raises:
        ProxyError: It was not done in time.
    """
    with trio.move_on_after(math.inf if limit is None else limit):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    raise ProxyError(f"{what} took more than {limit:g} seconds; is this host short of memory or processors?")
