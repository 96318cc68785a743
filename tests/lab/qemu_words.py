"""What QEMU says when it refuses something, in brief."""

from __future__ import annotations

import re

_NOT_KNOWN = ("does not accept value", "is unexpected", "Property 'migration.", "is not compiled in")
KILLED = "terminating on signal"
"""Who was killed refuses nothing."""

_PLACE = re.compile(r"offset 0x[0-9a-f]+(, section .*?)?: ")
_IDLE = re.compile(r" (warning|info): ")


def unknown(words: str) -> bool:
    return any(known in words for known in _NOT_KNOWN)


def brief(words: str) -> str:
    """Return the first sentence of QEMU's or the proxy's words: no offsets, no advice, no addresses."""
    lines = [line for line in words.splitlines() if line.strip() and not _IDLE.search(line)] or ["(no words)"]
    text = re.sub(r"^qemu-system-\w+: ", "", lines[0])
    text = _PLACE.sub("", text, count=1)
    text = re.sub(r"(/\S+|\d+\.\d+\.\d+\.\d+:\d+)", "...", text)
    return text.partition("; ")[0].strip().rstrip(".").replace("|", "/")
