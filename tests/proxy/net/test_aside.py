"""Work in a thread: what it returns and raises, and what becomes of it where there is no thread, or no end."""

from __future__ import annotations

import threading

import pytest
import trio

from proxy.errors import ProxyError
from proxy.net import aside as module
from proxy.net.aside import aside


async def test_what_it_returns_and_raises() -> None:
    assert await aside("counting", lambda: 6 * 7) == 42
    with pytest.raises(ZeroDivisionError):
        await aside("dividing", lambda: 1 // 0)


async def test_others_go_on_meanwhile() -> None:
    heard = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(aside, "waiting", heard.wait)
        await trio.sleep(0.01)
        heard.set()


async def test_it_is_not_waited_for_without_end() -> None:
    over = threading.Event()
    with pytest.raises(ProxyError, match=r"waiting took more than 0\.05 seconds"):
        await aside("waiting", lambda: over.wait(20), 0.05)
    over.set()


async def test_a_thread_that_finds_no_memory_to_tell_that_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its work was done, or failed for the lack of memory; a guest may wait for it."""

    def no_memory(*_: object) -> None:
        raise MemoryError

    def work() -> int:
        return 6 * 7

    monkeypatch.setattr(trio.lowlevel.TrioToken, "run_sync_soon", no_memory)
    with trio.fail_after(5):
        assert await aside("counting", work) == 42
        with pytest.raises(MemoryError):
            await aside("counting", no_memory)


async def test_a_thread_that_ends_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory is short."""
    monkeypatch.setattr(module, "start_new_thread", lambda *_: None)
    with pytest.raises(ProxyError, match="is this host short of memory"):
        await aside("counting", lambda: 6 * 7, 0.05)


async def test_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module, "start_new_thread", none)
    with pytest.raises(ProxyError, match="counting: can't start new thread"):
        await aside("counting", lambda: 6 * 7)
