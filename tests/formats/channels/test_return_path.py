"""The listener on the return path."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.channels.return_path import ReturnPathListener

SHUT, PONG, REQ_PAGES_ID, RECV_BITMAP = 1, 2, 4, 5


def message(kind: int, payload: bytes) -> bytes:
    return struct.pack(">HH", kind, len(payload)) + payload + (bitmap(payload * 3) if kind == RECV_BITMAP else b"")


def bitmap(data: bytes) -> bytes:
    """What follows RECV_BITMAP, outside the message."""
    return struct.pack(">Q", len(data)) + data + bytes.fromhex("0123456789abcdef")


def listen(data: bytes, size: int) -> int | None:
    listener = ReturnPathListener()
    for at in range(0, len(data), size):
        buffer = bytearray(data[at : at + size])
        listener.listen(memoryview(buffer))
        buffer[:] = b"\x00\x01\x00\x04\x00\x00\x00\x09"[: len(buffer)].ljust(len(buffer), b"\xff")
    return listener.shut


BEFORE = message(PONG, struct.pack(">I", 1)) + message(REQ_PAGES_ID, b"\x00" * 12 + b"\x03ram") + message(11, b"")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 1000])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (1, 1), (0xFFFFFFFF, 0xFFFFFFFF)])
@pytest.mark.parametrize("after", [b"", message(PONG, b"\0\0\0\1"), b"\0\1\0\4\0"], ids=["end", "pong", "cut"])
def test_shut_is_heard(value: int, expected: int, size: int, after: bytes) -> None:
    assert listen(BEFORE + message(SHUT, struct.pack(">I", value)) + after, size) == expected


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_shut_inside_a_payload_is_no_shut(size: int) -> None:
    forged = message(SHUT, b"\0\0\0\0")
    assert listen(message(5, forged * 3) + message(PONG, forged[:4]), size) is None


@pytest.mark.parametrize("size", [1, 1000])
def test_a_shut_that_is_cut_off_says_nothing(size: int) -> None:
    whole = BEFORE + message(SHUT, struct.pack(">I", 0))
    for end in range(len(whole)):
        assert listen(whole[:end], size) is None


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0" * 8])
def test_a_shut_of_another_length_is_stepped_over(payload: bytes) -> None:
    assert listen(message(SHUT, payload), 1000) is None
    assert listen(message(SHUT, payload) + message(SHUT, b"\0\0\0\2"), 1) == 2


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(2, 12), st.binary(max_size=40)), max_size=6),
    st.integers(0, 2**32 - 1),
    st.integers(1, 50),
)
def test_shut_is_heard_after_any_messages(messages: list[tuple[int, bytes]], value: int, size: int) -> None:
    data = b"".join(message(kind, payload) for kind, payload in messages)
    assert listen(data, size) is None
    assert listen(data + message(SHUT, struct.pack(">I", value)), size) == value
