"""Work that takes milliseconds is done one at a time, and whoever moves bytes gets between."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio

from proxy.live import leg
from proxy.live.turns import Turns
from proxy.report.report import Outcome
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import judge
from tests.proxy.live.test_hot_path import HEAD, PART, pages
from tests.proxy.live.test_session import DEVICES, EXPECTED, STREAM, migration, nothing_comes, receive, rest, send

if TYPE_CHECKING:
    from formats.frame.event import Raw

PATIENCE = 10


async def test_others_get_their_turn_between() -> None:
    turns, seen = Turns(), list[str]()

    async def work(name: str) -> None:
        await turns.take(lambda: seen.append(name))

    async def flow() -> None:
        while len(seen) < 3 + seen.count("flows"):
            seen.append("flows")
            await trio.lowlevel.checkpoint()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(work, name)
            nursery.start_soon(flow)
    worked = [at for at, name in enumerate(seen) if name != "flows"]
    assert sorted(seen[at] for at in worked) == ["a", "b", "c"]
    assert all(after - before > 1 for before, after in pairwise(worked))


async def test_who_is_alone_waits_for_nothing() -> None:
    turns, steps = Turns(), 0

    class Count(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            steps += 1

    trio.lowlevel.add_instrument(Count())
    assert await turns.take(lambda: 7) == 7
    assert not steps


async def test_an_error_gives_the_turn_on() -> None:
    turns = Turns()
    with trio.fail_after(PATIENCE):
        with pytest.raises(ZeroDivisionError):
            await turns.take(lambda: 1 // 0)
        assert await turns.take(lambda: 7) == 7


async def test_a_cancelled_wait_takes_no_turn() -> None:
    turns = Turns()
    with trio.fail_after(PATIENCE):
        await turns.take(lambda: None)
        with trio.CancelScope() as scope:
            scope.cancel()
            await turns.take(lambda: pytest.fail("it was cancelled"))
        assert scope.cancelled_caught
        assert await turns.take(lambda: 7) == 7


async def test_memory_waits_for_no_turn() -> None:
    """While others judge, what comes of a guest that runs goes on."""
    async with migration() as it:
        await send(it.source, HEAD[8:] + PART)
        await receive(it.destination, len(HEAD) - 8 + 5)
        turns = it.session.turns
        await turns._free.acquire()
        more = pages(700, zero=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, it.source, more)
            assert await receive(it.destination, len(more)) == more
        turns._free.release()
        it.source.close()


async def test_device_state_waits_for_its_turn() -> None:
    async with migration() as it:
        turns = it.session.turns
        await send(it.source, STREAM[8:DEVICES])
        assert await receive(it.destination, DEVICES - 8) == EXPECTED[8:DEVICES]
        await turns._free.acquire()
        await send(it.source, STREAM[DEVICES:])
        await nothing_comes(it.destination)
        turns._free.release()
        assert await receive(it.destination, len(STREAM) - DEVICES) == EXPECTED[DEVICES:]
        await it.confirm()


@pytest.mark.parametrize("held", [100, 1 << 30], ids=["much is held", "little is held"])
async def test_a_large_device_state_is_worked_on_in_a_thread(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(leg, "_MUCH_HELD", held)
    threads = set[int]()
    feed = Rewriter.feed

    def feed_and_note(self: Rewriter, data: Raw) -> list[Raw]:
        threads.add(threading.get_ident())
        return feed(self, data)

    monkeypatch.setattr(Rewriter, "feed", feed_and_note)
    async with migration() as it:
        for at in range(8, len(STREAM), 5000):
            await send(it.source, STREAM[at : at + 5000])
            await trio.sleep(0.02)
        assert await receive(it.destination, len(STREAM) - 8) == EXPECTED[8:]
        assert (await it.confirm()).outcome is Outcome.REWRITTEN
    assert (len(threads) > 1) == (held == 100)


async def test_a_large_device_state_that_is_refused_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leg, "_MUCH_HELD", 100)
    async with migration(judge()) as it:
        for at in range(8, len(STREAM), 5000):
            await send(it.source, STREAM[at : at + 5000])
            await trio.sleep(0.02)
        assert await rest(it.destination) == (STREAM[8:DEVICES], "reset")
        assert await rest(it.source) == (b"", "reset")
        assert (await it.end()).outcome is Outcome.REFUSED
