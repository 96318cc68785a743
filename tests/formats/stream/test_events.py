"""The events: what holds for all of them."""

import pytest

from formats.stream.events import IterableData
from formats.vmstate.device_state import DeviceState
from tests.streams import WHOLE, capture, collect, small


@pytest.mark.parametrize("name", WHOLE)
def test_every_byte_is_in_just_one_event(name: str) -> None:
    stream = capture(name)
    offset = 0
    for event in collect([stream]).events:
        assert event.offset == offset
        assert stream[offset : offset + len(event.raw)] == event.raw
        offset += len(event.raw)
    assert offset == len(stream)


def test_events_are_frozen_and_their_bytes_are_not_printed() -> None:
    for event in collect([small().stream()]).events:
        with pytest.raises(AttributeError):
            event.offset = 1  # type: ignore[misc]
        assert "raw=" not in repr(event)
        assert "held=" not in repr(event)
        assert isinstance(event, DeviceState) or len(repr(event)) < 300


def test_a_device_state_is_patched_in_what_is_passed_on() -> None:
    (state,) = collect([small().stream()]).states
    assert state.raw is state.held
    assert not isinstance(state, IterableData)
