"""What goes on as it came is moved by the kernel: only what is the beginning of what was fed, and unchanged."""

from __future__ import annotations

import random

import pytest
from trio import open_nursery

from proxy.live.leg import _are_parts
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import NEWER, R0, downgrade, judge
from tests.proxy.live.test_hot_path import HEAD, PAGE, PART, counted, pages
from tests.proxy.live.test_session import DEVICES, EXPECTED, STREAM, migration, receive, send
from tests.streams import RAM_EOS, footer, recorded, section_part

SEED = 5


@pytest.mark.parametrize("most", [60, 300, 5000])
@pytest.mark.parametrize("drops", [False, True], ids=["swapped", "left out"])
def test_what_the_kernel_may_move_is_the_beginning(most: int, drops: bool) -> None:
    """However a stream is cut, and whatever is changed in it."""
    draw = random.Random(SEED)
    rewriter = Rewriter(downgrade() if drops else judge(R0), live=False)
    stream = recorded(NEWER if drops else "kvm-trixie-a57r0").stream()
    moved = at = 0
    while at < len(stream):
        data = memoryview(bytearray(stream[at : at + draw.randint(1, most)]))
        at += len(data)
        nothing_held = not rewriter.held
        pieces = rewriter.feed(data)
        if nothing_held and _are_parts(pieces, data):
            goes_on = b"".join(pieces)
            assert data[: len(goes_on)] == goes_on
            moved += len(goes_on)
    rewriter.end()
    assert rewriter.report.changes
    assert moved


async def test_memory_before_and_after_a_part_and_the_device_state() -> None:
    """Much that is looked at, then the device state in the same go, with its registers swapped."""
    memory = section_part(1, pages(600, zero=False) + RAM_EOS) * 2
    before, after = STREAM[8:DEVICES], EXPECTED[DEVICES:]
    complete = before.rindex(b"\x03" + (1).to_bytes(4, "big"))
    stream = before[:complete] + memory + STREAM[8 + complete :]
    expected = before[:complete] + memory + before[complete:] + after
    async with migration() as it:
        async with open_nursery() as nursery:
            nursery.start_soon(send, it.source, stream)
            assert await receive(it.destination, len(expected)) == expected
        report = await it.confirm()
    assert report.bytes_in == report.bytes_out == 8 + len(stream)
    assert len(report.changes) == 2


async def test_full_pages_are_written_by_the_kernel() -> None:
    stream = pages(2000, zero=False)
    async with migration() as it:
        await send(it.source, HEAD[8:] + PART)
        await receive(it.destination, len(HEAD) - 8 + 5)
        with counted() as calls:
            async with open_nursery() as nursery:
                nursery.start_soon(send, it.source, stream)
                assert await receive(it.destination, len(stream)) == stream
        assert calls["splice"] > 2 * calls["write"]
        rest = RAM_EOS + footer(1)
        await send(it.source, rest)
        assert await receive(it.destination, len(rest)) == rest
        it.source.close()
    assert len(stream) == 2000 * (8 + PAGE)
