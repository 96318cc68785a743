"""What an NBD client says first."""

from __future__ import annotations

import struct

import pytest

from formats.channels.nbd import asks_for_tls

STARTTLS, GO = 5, 7


def opening(option: int, *, magic: bytes = b"IHAVEOPT", length: int = 0) -> bytes:
    return struct.pack(">I8sII", 3, magic, option, length)


def test_a_client_that_begins_with_starttls_asks_for_tls() -> None:
    assert asks_for_tls(opening(STARTTLS))
    assert asks_for_tls(opening(STARTTLS) + b"\x16\x03\x01")


@pytest.mark.parametrize(
    "words",
    [opening(GO), opening(STARTTLS, magic=b"IHAVEOPX"), opening(STARTTLS, length=1), opening(STARTTLS)[:-1], b""],
    ids=["another option", "no option", "with data", "cut", "nothing"],
)
def test_any_other_does_not(words: bytes) -> None:
    assert not asks_for_tls(words)
