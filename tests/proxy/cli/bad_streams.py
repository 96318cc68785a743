"""Streams that no command can read, and what is said of them."""

from __future__ import annotations

import struct

from tests.proxy.cli.command_line import SMP2
from tests.proxy.helpers import capture

BROKEN = {
    "truncated": (capture(SMP2)[:300_000], "the stream ends"),
    "cut by a byte": (capture(SMP2)[:-1], "the stream ends"),
    "foreign": (b"\x7fELF" + bytes(1000), "not with 'QEVM'"),
    "libvirt": (b"LibvirtQemudSave" + bytes(1000), "a libvirt save file"),
    "empty": (b"", "the stream ends"),
}
"""What each holds, and what is said of it."""


def multifd() -> bytes:
    """A stream that announces the capability multifd."""
    stream = capture(SMP2)
    name = b"configuration/capabilities"
    subsection = b"\x05" + bytes([len(name)]) + name + struct.pack(">II", 1, 1) + b"\x07multifd"
    return stream[:61] + subsection + stream[61:]
