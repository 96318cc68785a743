"""Streams to record, and to replay."""

from __future__ import annotations

from formats.stream.events import SectionBegin
from tests.proxy.helpers import OPEN_RETURN_PATH, device_state, events, live, short
from tests.streams import command, section_start

SMP2 = "kvm-trixie-a57r0-smp2"
NO_RETURN_PATH = short(SMP2)
PING = command(2, b"\0\0\0\1")
POSTCOPY_ADVISE = command(3, bytes(16))
STREAM = live(NO_RETURN_PATH).replace(OPEN_RETURN_PATH, OPEN_RETURN_PATH + PING, 1)
DEVICES = device_state(STREAM).offset
UNKNOWN = section_start(77, "from-the-future", b"\xa5" * 40)
"""An iterable section whose records nobody here knows."""

OPAQUE = STREAM[:DEVICES] + UNKNOWN + STREAM[DEVICES:]


def before_sections(stream: bytes, insert: bytes) -> bytes:
    """Return the stream with records put between what the source says of itself and the first section."""
    at = next(event.offset for event in events(stream) if isinstance(event, SectionBegin))
    return stream[:at] + insert + stream[at:]
