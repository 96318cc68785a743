"""How much is done for a page, a section, a vCPU, a buffer: counted operations, so that no clock decides.

A bound that fails says that the hot path has grown; raise it only for a reason.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from benchmarks.switchover import grown
from proxy.live import leg
from proxy.net.connection import SocketConnection
from proxy.net.pumps import pass_on
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import NEWER, R0, downgrade, judge
from tests.proxy.live.test_session import migration, receive, send
from tests.streams import RAM_EOS, footer, ram_page, ram_zero, section_part, short_head

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

PAGE = 4096
BUFFER = 1 << 20
HEAD = short_head()[: -len(b"\x03" + bytes(4) + RAM_EOS + footer(1))]
PART = b"\x02" + (1).to_bytes(4, "big")


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the calls of Python functions, as `()`, and of compiled ones, by name."""
    calls: Counter[str] = Counter()

    def profile(_frame: FrameType, event: str, argument: Any) -> None:  # noqa: ANN401
        if event == "call":
            calls["()"] += 1
        elif event == "c_call":
            calls[argument.__name__] += 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(before)
        del calls["setprofile"]


def pages(count: int, *, zero: bool) -> bytes:
    one = ram_zero if zero else partial(ram_page, payload=b"\x5a" * PAGE)
    return b"".join(one(index % 16 * PAGE) for index in range(count))


def fed(stream: bytes) -> int:
    """Return how many calls it takes to pass a piece of RAM on, in buffers as they come from a socket."""
    rewriter = Rewriter(judge(R0), live=False)
    rewriter.feed(memoryview(HEAD + PART))
    passed = 0
    with counted() as calls:
        for at in range(0, len(stream), BUFFER):
            for piece in rewriter.feed(memoryview(stream)[at : at + BUFFER]):
                passed += len(piece)
    assert passed == len(stream)
    return calls.total()


@pytest.mark.parametrize("zero", [False, True], ids=["full pages", "zero pages"])
def test_nothing_is_done_for_a_single_page(zero: bool) -> None:
    few, many = (fed(pages(count, zero=zero)) for count in (60, 240))
    assert few == many <= 60


@pytest.mark.parametrize("zero", [False, True], ids=["full pages", "zero pages"])
def test_calls_for_a_buffer(zero: bool) -> None:
    count = 16 * BUFFER // (9 if zero else 8 + PAGE)
    assert fed(pages(count, zero=zero)) <= 17 * (90 if zero else 65)


def test_calls_for_a_section() -> None:
    def calls(count: int) -> int:
        one = section_part(1, pages(2, zero=False) + RAM_EOS)
        stream = pages(1, zero=False) + RAM_EOS + footer(1) + one * count
        return fed(stream)

    assert (calls(40) - calls(20)) / 20 <= 145


@pytest.mark.parametrize("vmdesc", [True, False], ids=["vmdesc", "no vmdesc"])
def test_calls_for_a_vcpu_at_the_switchover(vmdesc: bool) -> None:
    """Each of them gets another MIDR_EL1; the guest stands meanwhile."""

    def calls(vcpus: int) -> int:
        switchover = grown(vcpus, vmdesc=vmdesc)
        rewriter = Rewriter(judge(R0), live=True)
        rewriter.feed(memoryview(switchover.before))
        with counted() as found:
            out = rewriter.feed(memoryview(switchover.state)) or rewriter.without_vmdesc()
        assert sum(map(len, out)) == len(switchover.state)
        assert len(rewriter.report.changes) == vcpus
        return found.total()

    calls(1)  # what is loaded once
    assert (calls(24) - calls(8)) / 16 <= 205


def test_calls_for_a_vcpu_that_registers_are_taken_out_of() -> None:
    """Each of them loses 17, and gets other values in five; what the vmdesc says of them is looked at once."""

    def calls(vcpus: int) -> int:
        switchover = grown(vcpus, vmdesc=True, name=NEWER)
        rewriter = Rewriter(downgrade(), live=True)
        rewriter.feed(memoryview(switchover.before))
        with counted() as found:
            assert rewriter.feed(memoryview(switchover.state))
        assert len(rewriter.report.changes) == 22 * vcpus
        return found.total()

    calls(1)  # what is loaded once
    assert (calls(24) - calls(8)) / 16 <= 420


async def test_system_calls_for_a_buffer() -> None:
    """A buffer is received as one and sent as one, as far as the sockets take it."""
    stream = pages(8 * BUFFER // (8 + PAGE), zero=False)
    async with migration() as it:
        await send(it.source, HEAD[8:] + PART)
        await receive(it.destination, len(HEAD) - 8 + 5)
        with counted() as calls:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, it.source, stream)
                await receive(it.destination, len(stream))
        it.source.close()
    # 8 MiB: no less than 128 KiB each on average, the test's own to send among them.
    assert calls["readv"] <= 64
    assert calls["write"] + calls["send"] <= 128


async def test_zero_pages_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU sends them in pieces of 32 KiB; each that is taken alone costs a turn of everyone on the way."""
    piece = pages(3600, zero=True)
    monkeypatch.setattr(leg, "_GATHER", 0.3)
    async with migration() as it:
        await send(it.source, HEAD[8:] + PART)
        await receive(it.destination, len(HEAD) - 8 + 5)
        with counted() as calls:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, it.destination, 30 * len(piece))
                for _ in range(30):
                    await send(it.source, piece)
                    await trio.sleep(0.001)
        it.source.close()
    assert calls["readv"] <= 20


@pytest.mark.parametrize(
    "pieces",
    [
        (PART + ram_page(0, payload=bytes(PAGE))[:-2], b"\0"),
        (PART + pages(9, zero=True) + RAM_EOS, footer(1)),
        (b"\x03" + PART[1:] + pages(9, zero=True), pages(9, zero=True)),
    ],
    ids=["within a page", "the end of a part", "the guest stands"],
)
async def test_nothing_else_waits_for_more(monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...]) -> None:
    monkeypatch.setattr(leg, "_GATHER", 60)
    async with migration() as it:
        for piece in HEAD[8:], *pieces:
            await send(it.source, piece)
            assert await receive(it.destination, len(piece)) == piece
        it.source.close()


async def test_channels_stay_in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    here, near = trio.socket.socketpair()
    there, far = trio.socket.socketpair()
    data = bytes(8 * BUFFER)
    splice, spliced = os.splice, 0

    def splice_and_count(source: int, target: int, most: int, *, flags: int) -> int:
        nonlocal spliced
        length = splice(source, target, most, flags=flags)
        spliced += length
        return length

    monkeypatch.setattr(os, "splice", splice_and_count)
    with here, near, there, far, counted() as calls:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, SocketConnection("source", here), SocketConnection("destination", there))
            nursery.start_soon(send, near, data)
            assert await receive(far, len(data)) == data
            near.shutdown(socket.SHUT_WR)
    assert spliced == 2 * len(data)  # into a pipe, and out of it
    assert calls["readv"] == 0
