"""Changes of inputs: of bytes, of numbers and counts, of a stream's footers, sections and vmdesc; and splices."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

INTERESTING = (0, 1, 2, 3, 4, 6, 7, 8, 0x7E, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 63)
TOKENS = (
    *(b"QEVM\0\0\0\3", b"\x7e\0\0\0\7", b"\0\6\0\0\0\x10{", b"\x08\0\x07\0\4", b"\x05", b"\x0acpu", b"\x03ram"),
    *(b"\0\0\0\0\0\0\0\x10", b"\0\0\0\0\0\0\0\x28", b"\x11\x22\x33\x44", b"\x16\x03", b"LibvirtQemudSave", b"QFI\xfb"),
)


def flip(data: bytearray, rng: random.Random) -> None:
    """Change a few bytes."""
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def set_number(data: bytearray, rng: random.Random) -> None:
    """Put a number of some width where there may be one."""
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, len(data) - size))
    value = rng.choice(INTERESTING) + rng.choice((-1, 0, 0, 1))
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "big")


def cut_out(data: bytearray, rng: random.Random) -> None:
    """Leave a stretch out."""
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 4, 8, 5, rng.randint(1, 600)))]


def repeat(data: bytearray, rng: random.Random) -> None:
    """Have a stretch twice."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randint(1, 400)]
    data[start:start] = piece


def insert(data: bytearray, rng: random.Random) -> None:
    """Put something in that has a meaning elsewhere."""
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(TOKENS)


def truncate(data: bytearray, rng: random.Random) -> None:
    """End it early."""
    del data[rng.randrange(len(data)) :]


def forge_footer(data: bytearray, rng: random.Random) -> None:
    """Let a section seem to end, and another to begin, in the midst of bytes."""
    at = rng.randrange(len(data))
    name = rng.choice((b"cpu", b"timer", b"e1000", b"ram"))
    section = rng.randrange(12).to_bytes(4, "big")
    forged = b"\x7e" + section + b"\4" + section + bytes([len(name)]) + name + bytes(3) + b"\1" + bytes(3) + b"\x16"
    data[at : at + (len(forged) if rng.random() < 0.7 else 0)] = forged


def change_vmdesc(data: bytearray, rng: random.Random) -> None:
    """Change the description of a stream, and mostly keep its length right."""
    start = data.rfind(b"\0\6")
    while start >= 0 and start + 6 + int.from_bytes(data[start + 2 : start + 6], "big") != len(data):
        start = data.rfind(b"\0\6", 0, start)
    if start < 0:
        return
    try:
        vmdesc = json.loads(data[start + 6 :])
    except ValueError:
        return
    _change(vmdesc, rng)
    text = json.dumps(vmdesc).encode()
    length = len(text) + (rng.choice((-1, 1, 4096)) if rng.random() < 0.1 else 0)
    data[start + 2 :] = length.to_bytes(4, "big") + text


def _change(vmdesc: Any, rng: random.Random) -> None:  # noqa: ANN401 - any JSON
    """Change one thing somewhere in a JSON document."""
    here = vmdesc
    while True:
        keys: list[Any] = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(here[key], dict | list) and here[key] and rng.random() < 0.85:
            here = here[key]
            continue
        match rng.randrange(4):
            case 0:
                del here[key]
            case 1:
                here[key] = rng.choice((0, 1, 8, -1, 1 << 40, "cpu", "", None, [], {}, True, 1.5))
            case 2 if isinstance(here[key], int):
                here[key] += rng.choice((-8, -1, 1, 8))
            case _ if isinstance(here, list):
                here.insert(key, here[rng.choice(keys)])
        return


ANY: Sequence[Callable[[bytearray, random.Random], None]] = (flip, flip, set_number, cut_out, repeat, insert, truncate)
STREAM = (*ANY, forge_footer, change_vmdesc, change_vmdesc)


def mutated(
    seeds: Sequence[bytes], rng: random.Random, ways: Sequence[Callable[[bytearray, random.Random], None]]
) -> bytes:
    """Return an input made of the seeds, by one to four changes."""
    data = bytearray(rng.choice(seeds))
    if rng.random() < 0.1:
        other = rng.choice(seeds)
        data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        if data:
            rng.choice(ways)(data, rng)
    return bytes(data)
