"""Work in a thread, while other migrations go on."""

import math
from _thread import start_new_thread
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar, cast

import trio

from proxy.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_LOOKS: Final = 0.5
"""Seconds after which it is looked whether the work is done."""

LIMIT: Final = 60.0
"""Seconds that are enough for whatever is not bounded otherwise."""


async def aside(what: str, work: "Callable[[], T]", limit: float | None = LIMIT) -> T:
    """Do work in a thread and return what it returns, or raise what it raises.

    Not by `trio.to_thread`: where memory is short, a thread ends before it has begun; `threading.Thread.start`, and the
    loop with it, then waits for it for ever. Here nobody does, beyond the limit.

    Args:
        what: What is done, for the error.
        work: Does it. It may still go on after an error; what it returns is thrown away then.
        limit: Seconds; None for no limit.

    Raises:
        ProxyError: It was not done in time, or there can be no thread.
    """
    done, token = trio.Event(), trio.lowlevel.current_trio_token()
    # Places that are there before memory is short: what was found, what was raised, whether it is over.
    found: list[T | None] = [None]
    problem: list[BaseException | None] = [None]
    over = [False]

    def run() -> None:
        try:
            found[0] = work()
        except BaseException as error:
            problem[0] = error
        over[0] = True
        with suppress(trio.RunFinishedError, MemoryError):
            token.run_sync_soon(done.set)

    try:
        start_new_thread(run, ())
    except RuntimeError as error:
        raise ProxyError(f"{what}: {error}") from error
    with trio.move_on_after(math.inf if limit is None else limit):
        while not over[0]:  # where memory is short, no word of it may come
            with trio.move_on_after(_LOOKS):
                await done.wait()
    if problem[0] is not None:
        raise problem[0]
    if not over[0]:
        raise ProxyError(f"{what} took more than {limit:g} seconds; is this host short of memory or processors?")
    return cast("T", found[0])
