"""Holding the device state: what ends it, and what only looks like an end."""

import time

import pytest

from formats.errors import DeviceStateTooLargeError, MalformedStreamError, TruncatedStreamError
from formats.limits import DEFAULT_DEVICE_STATE_LIMIT
from formats.vmstate.hold import DeviceStateHold
from tests.streams import EOF, Reading, be32, buffer_section, footer, pieces_of, section_header, small, vmdesc_record

DEVICES = small().devices
END = EOF + vmdesc_record(small().vmdesc())


def held(*pieces: bytes) -> tuple[DeviceStateHold, list[bool]]:
    """Return a hold of the pieces, and whether each was found to end with a vmdesc."""
    hold = DeviceStateHold(DEFAULT_DEVICE_STATE_LIMIT)
    found = []
    for piece in pieces:
        hold.add(memoryview(piece), 0)
        found.append(hold.find_vmdesc())
    return hold, found


def test_the_vmdesc_is_found_only_where_the_bytes_end() -> None:
    whole = DEVICES + END
    assert held(whole)[1] == [True]
    assert held(whole[:-1])[1] == [False]
    assert held(whole + b"\0")[1] == [False]
    assert held(whole[:-1], whole[-1:], b"\0")[1] == [False, True, False]


@pytest.mark.parametrize("cut", range(-12, 13))
def test_its_head_may_be_cut_anywhere(cut: int) -> None:
    whole = DEVICES + END
    at = len(DEVICES) + cut
    assert held(whole[:at], whole[at:-5], whole[-5:])[1] == [False, False, True]
    assert held(*(whole[:at], *pieces_of(whole[at : at + 20], 1), whole[at + 20 :]))[1][-1]


@pytest.mark.parametrize(
    "fake",
    [
        b"\x06" + be32(20) + b"{" + bytes(19),
        EOF + b"\x06" + be32(20) + b"{" + bytes(19),
        footer(9) + b"\x06" + be32(20) + b"{" + bytes(19),
        footer(9) + EOF + be32(20) + b"{" + bytes(19),
        footer(9) + EOF + b"\x06" + be32(20) + b"[" + bytes(19),
        footer(9) + EOF + b"\x06" + be32(19) + b"{" + bytes(19),
        footer(9) + EOF + b"\x06" + be32(21) + b"{" + bytes(19),
        footer(9) + EOF + b"\x06" + be32(0),
    ],
    ids=["no end", "no footer", "no end of file", "no type", "no object", "too short", "too long", "empty"],
)
def test_what_is_no_vmdesc(fake: bytes) -> None:
    assert held(DEVICES[:-5] + fake)[1] == [False]


def test_a_fake_vmdesc_does_not_hide_the_true_one() -> None:
    for fake in (footer(9) + EOF + b"\x06" + be32(20) + b"{", footer(9) + EOF + b"\x06\xff\xff\xff\xff{"):
        whole = DEVICES[:-40] + fake * 3 + DEVICES[-40:] + END
        assert held(whole)[1] == [True]
        hold, found = held(*pieces_of(whole, 1))
        assert found[-1]
        sections_end = len(whole) - len(END)
        assert hold.cut(sections_end, b"more") == END + b"more"
        assert len(hold) == sections_end


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (footer(9) + EOF, True),
        (b"\x7e\xff\xff\xff\xff\x00", True),
        (footer(9), False),
        (footer(9) + b"\x04", False),
        (footer(9) + EOF + b"\x06", False),
        (b"\x7d" + be32(9) + EOF, False),
    ],
)
def test_what_ends_like_the_end(tail: bytes, expected: bool) -> None:
    hold, _ = held(DEVICES, tail)
    assert hold.ends_like_the_end is expected
    assert not held(b"\x7e\0\0\0\0\0")[0].ends_like_the_end, "there is no room for a section"


def test_release_forgets() -> None:
    hold, _ = held(DEVICES + END)
    assert bytes(hold.release()) == DEVICES + END
    assert len(hold) == 0
    assert not hold.find_vmdesc()
    hold.add(b"x" * (len(DEVICES + END)), 0)
    assert not hold.find_vmdesc()
    again = DEVICES + END
    hold.release()
    hold.add(again[:100], 0)
    assert not hold.find_vmdesc()
    hold.add(again[100:], 0)
    assert hold.find_vmdesc()


def test_it_keeps_no_view_of_what_it_was_given() -> None:
    buffer = bytearray(DEVICES)
    hold, _ = held()
    hold.add(memoryview(buffer), 0)
    buffer[:] = bytes(len(buffer))
    buffer.append(0)  # raises if a view of it is left
    assert bytes(hold.release()) == DEVICES


def test_the_limit_is_exact() -> None:
    hold = DeviceStateHold(10)
    hold.add(b"x" * 10, 5)
    with pytest.raises(DeviceStateTooLargeError, match="10 bytes") as caught:
        hold.add(b"x", 5)
    assert caught.value.offset == 5


@pytest.mark.parametrize("room", [1, 20])
def test_forged_vmdescs_in_a_stream_that_was_cut_cost_little(room: int) -> None:
    """A quarter of a mebibyte of vmdescs, each of which ends within the chunk, and then the source ends."""
    body = bytearray()
    while len(body) < 1 << 18:
        body += footer(60) + EOF + b"\x06" + be32(room) + b"{" + b"}" * (room - 1)
    stream = small().head + section_header(4, 60, "dev") + bytes(body) + bytes(1)
    started = time.process_time()
    reading = Reading()
    reading.feed(stream)
    with pytest.raises(TruncatedStreamError):
        reading.feed(b"")
    assert time.process_time() - started < 2


def test_what_follows_a_complete_stream_is_told_from_a_cut() -> None:
    """A forged end in a device's buffer is no complete stream, and what follows it is not past the end."""
    fake = footer(60) + EOF + b'\x06\0\0\0\x0e{"devices":[]}'
    parts = small().inserted(1, buffer_section(60, "dev", fake))
    reading = Reading()
    reading.feed(parts.stream()[:-1])
    with pytest.raises(TruncatedStreamError):
        reading.feed(b"")
    reading = Reading()
    reading.feed(parts.stream() + b"??")
    with pytest.raises(MalformedStreamError) as caught:
        reading.feed(b"")
    assert not isinstance(caught.value, TruncatedStreamError)
    assert caught.value.offset == len(parts.stream())
