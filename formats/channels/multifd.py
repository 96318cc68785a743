"""The multifd channels' greeting; what follows it is memory, and passes as it is.

Source: QEMU `migration/multifd.c` (`MultiFDInit_t`, `multifd_send_initial_packet`), the same from 5.2 to 11.1.
"""

from typing import Final

from construct import Bytes, Const, Int8ub, Int32ub, Int64ub, Struct

MAGIC: Final = bytes.fromhex("11223344")

HELLO: Final = Struct(
    "magic" / Const(MAGIC),
    "version" / Const(1, Int32ub),
    "uuid" / Bytes(16),
    "id" / Int8ub,
    "unused1" / Bytes(7),
    "unused2" / Int64ub[4],
)
"""64 bytes; the UUID is the guest's, the id counts the channels from 0."""


def is_channel(opening: bytes | memoryview) -> bool:
    """Tell whether a connection that begins so is a multifd channel."""
    return bytes(opening[: len(MAGIC)]) == MAGIC


def channel_guest(opening: bytes | memoryview) -> bytes:
    """Return the UUID of the guest that a channel belongs to, 16 bytes; shorter where its greeting is cut off."""
    return bytes(opening[8:24])
