"""The return path: what the destination tells the source on the same connection.

A message is be16 type, be16 length, payload. A migration's own are only listened to: the proxy passes their bytes on
as they come. Where there is no destination, `pong` and `shut` are what one would say.
Source: QEMU `migration/migration.c` (`enum mig_rp_message_type`, `source_return_path_thread`), `migration/ram.c`
(`ramblock_recv_bitmap_send`).
"""

import enum
from collections import Counter
from struct import Struct
from typing import Final

from formats.frame.event import Raw


class MessageType(enum.IntEnum):
    """What a message says (`MIG_RP_MSG_*`)."""

    SHUT = 1
    """be32 value: the last message; 0 when the destination has the guest."""
    PONG = 2
    """be32: the value of the PING that it answers."""
    REQ_PAGES_ID = 3
    REQ_PAGES = 4
    RECV_BITMAP = 5
    """u8 length + a RAM block's idstr; be64 size, that many bytes, and a be64 mark follow outside the message."""
    RESUME_ACK = 6
    SWITCHOVER_ACK = 7


POSTCOPY_REQUESTS: Final = frozenset(
    {MessageType.REQ_PAGES_ID, MessageType.REQ_PAGES, MessageType.RECV_BITMAP, MessageType.RESUME_ACK}
)
"""What only a running source can answer; a destination sends none of them in precopy."""

_HEADER: Final = Struct(">HH")
_BE32: Final = Struct(">I")
_BE64: Final = Struct(">Q")


def shut(value: int) -> bytes:
    """Return the message that ends the return path; with any value but 0 the source keeps its guest."""
    return _HEADER.pack(MessageType.SHUT, _BE32.size) + _BE32.pack(value)


def pong(ping: bytes) -> bytes:
    """Return the answer to a PING; `ping` is its payload."""
    return _HEADER.pack(MessageType.PONG, len(ping)) + ping


class ReturnPathListener:
    """Steps through the messages and notes how the destination ends them.

    Attributes:
        shut: The value of SHUT: 0 when the destination has the guest, another when it failed; None before.
        heard: How many messages of each type have begun; the types are numbers, known or not.
    """

    def __init__(self) -> None:
        self.shut: int | None = None
        self.heard: Counter[int] = Counter()
        self._partial = b""
        self._payload_left = 0
        self._bitmap_follows = False

    @property
    def ending(self) -> str:
        """How a destination ended that did not take the guest, in words."""
        return "ended saying nothing" if self.shut is None else f"ended with error {self.shut}"

    def listen(self, data: Raw) -> None:
        """Take the next bytes that the destination sent."""
        rest = memoryview(self._partial + bytes(data)) if self._partial else memoryview(data)
        while True:
            step = min(self._payload_left, len(rest))
            self._payload_left -= step
            rest = rest[step:]
            if self._payload_left:
                break
            if self._bitmap_follows:
                if len(rest) < _BE64.size:
                    break
                self._payload_left = sum(_BE64.unpack_from(rest)) + 2 * _BE64.size
                self._bitmap_follows = False
                continue
            if len(rest) < _HEADER.size:
                break
            kind, length = _HEADER.unpack_from(rest)
            if kind == MessageType.SHUT and length == _BE32.size:
                if len(rest) < _HEADER.size + length:
                    break
                (self.shut,) = _BE32.unpack_from(rest, _HEADER.size)
            self.heard[kind] += 1
            rest = rest[_HEADER.size :]
            self._payload_left = length
            self._bitmap_follows = kind == MessageType.RECV_BITMAP
        self._partial = bytes(rest)
