"""The return path: what the destination tells the source on the same connection.

A message is be16 type, be16 length, payload. It is only listened to: the proxy passes its bytes on as they come.
Source: QEMU `migration/migration.h` (`MIG_RP_MSG_*`), `migration/migration.c` (`source_return_path_thread`).
"""

from struct import Struct
from typing import Final

from formats.events import Raw

SHUT: Final = 1
_HEADER: Final = Struct(">HH")
_BE32: Final = Struct(">I")


class ReturnPathListener:
    """Steps through the messages and notes how the destination ends them.

    Attributes:
        shut: The value of SHUT: 0 when the destination has the guest, another when it failed; None before.
    """

    def __init__(self) -> None:
        self.shut: int | None = None
        self._partial = b""
        self._payload_left = 0

    def listen(self, data: Raw) -> None:
        """Take the next bytes that the destination sent."""
        rest = memoryview(self._partial + bytes(data)) if self._partial else memoryview(data)
        while True:
            step = min(self._payload_left, len(rest))
            self._payload_left -= step
            rest = rest[step:]
            if len(rest) < _HEADER.size:
                break
            kind, length = _HEADER.unpack_from(rest)
            if kind == SHUT and length == _BE32.size:
                if len(rest) < _HEADER.size + length:
                    break
                (self.shut,) = _BE32.unpack_from(rest, _HEADER.size)
            rest = rest[_HEADER.size :]
            self._payload_left = length
        self._partial = bytes(rest)
