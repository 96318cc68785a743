"""Reading along with a stream: where in it one is, also where it is not understood."""

from __future__ import annotations

import pytest
import trio

from formats.errors import TruncatedStreamError
from proxy.recording.reading_along import Follower
from tests.proxy.helpers import cut, device_state
from tests.proxy.recording.record_streams import DEVICES, OPAQUE, STREAM


@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_follower_knows_where_it_is(size: int) -> None:
    follower = Follower()
    for piece in cut(STREAM, range(0, len(STREAM), size)):
        follower.follow(piece)
    assert follower.complete
    assert follower.section_at(0) == "the header"
    assert follower.section_at(DEVICES - 20) == "section 'ram' instance 0"
    state = device_state(STREAM)
    for section in state.sections:
        for at in (section.start, section.end - 1):
            assert follower.section_at(DEVICES + at) == f"section {section.label}"


def test_a_follower_amidst_the_device_state_and_past_what_it_understands() -> None:
    follower = Follower()
    follower.follow(STREAM[: DEVICES + 1000])
    assert follower.section_at(DEVICES + 999) == "the device state"
    follower = Follower()
    follower.follow(OPAQUE)
    assert follower.section_at(DEVICES - 1) == "section 'ram' instance 0"
    assert follower.section_at(DEVICES) == "what was not understood"
    assert follower.length == len(OPAQUE)


async def test_a_stream_of_nothing_does_not_begin() -> None:
    async def nothing() -> memoryview:
        await trio.lowlevel.checkpoint()
        return memoryview(b"")

    with pytest.raises(TruncatedStreamError):
        await Follower().begin(b"", nothing)
