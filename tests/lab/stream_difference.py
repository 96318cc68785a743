"""How what was recorded before the proxy and after it differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab.tap import Tap

DEVICE_STATE = 1 << 18
"""More bytes than the device state of these guests and its vmdesc have."""


def main_channel(tap: Tap) -> bytes:
    streams = [recording.forward.read_bytes() for recording in tap.recordings]
    return next(stream for stream in streams if stream.startswith(b"QEVM"))


def differing(one: bytes, other: bytes) -> int | None:
    if len(one) != len(other):
        return None
    step = 1 << 12
    return sum(
        left != right
        for at in range(0, len(one), step)
        if one[at : at + step] != other[at : at + step]
        for left, right in zip(one[at : at + step], other[at : at + step], strict=True)
    )


def same(one: bytes, other: bytes) -> int:
    """Return how many bytes are equal from the start on."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
