"""Another reader of streams, plain and slow, by which the parser is checked. It takes nothing from `formats`.

It reads a whole precopy stream with a vmdesc at its end, as QEMU's `docs/devel/migration/main.rst` and its sources have
it: headers by hand, memory record by record, device sections by the sizes in the vmdesc.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


class PlainError(Exception):
    """It is no such stream, or holds what this reader does not know."""


@dataclass
class PlainStream:
    """What was read.

    Attributes:
        sections: The device sections: idstr, instance id, and where they begin and end.
        registers: Where the value of each register of each vCPU stands, by vCPU and register id.
    """

    sections: list[tuple[str, int, int, int]] = field(default_factory=list)
    registers: dict[int, dict[int, int]] = field(default_factory=dict)


def number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise PlainError("cut")
    return int.from_bytes(data[at : at + size], "big")


def string(data: bytes, at: int) -> tuple[str, int]:
    length = number(data, at, 1)
    return data[at + 1 : at + 1 + length].decode("latin-1"), at + 1 + length


def size_of(described: dict[str, Any]) -> int:
    """Return how many bytes a device, struct or subsection of a vmdesc has."""
    own = sum(one["size"] * one.get("array_len", 1) for one in described.get("fields", ()))
    below = described.get("subsections", ())
    return int(own) + sum(2 + len(sub["vmsd_name"]) + 4 + size_of(sub) for sub in below)


def field_at(described: dict[str, Any], name: str) -> int | None:
    """Return where a field of a device begins in its body."""
    at = 0
    for one in described["fields"]:
        if one["name"] == name:
            return at
        at += one["size"] * one.get("array_len", 1)
    return None


def read_plainly(data: bytes) -> PlainStream:
    """Read a stream.

    Raises:
        PlainError: It is none that this reader knows.
    """
    if data[:8] != b"QEVM\0\0\0\3":
        raise PlainError("no file header")
    found, at = PlainStream(), 8
    if number(data, at, 1) == 7:
        at += 5 + number(data, at + 1, 4)
        while number(data, at, 1) == 5:
            name, end = string(data, at + 1)
            at = configured(data, name, end + 4)
    while (kind := number(data, at, 1)) in (1, 2, 3, 8):
        if kind == 8:
            at += 5 + number(data, at + 3, 2)
            continue
        if kind == 1:
            name, at = string(data, at + 5)
            if name != "ram":
                raise PlainError(name)
            at += 8
        else:
            at += 5
        at = memory(data, at) + 5
    if kind != 4:
        raise PlainError(f"type {kind}")
    return devices(data, at, found)


def configured(data: bytes, name: str, at: int) -> int:
    """Step over a subsection of the configuration."""
    if name == "configuration/target-page-bits":
        return at + 4
    if name == "configuration/uuid":
        return at + 16
    if name != "configuration/capabilities":
        raise PlainError(name)
    count, at = number(data, at, 4), at + 4
    for _ in range(count):
        _, at = string(data, at)
    return at


def memory(data: bytes, at: int) -> int:
    """Step over the records of a `ram` section of 4 KiB pages, to their end."""
    while True:
        word, at = number(data, at, 8), at + 8
        flags = word & 0xFFF
        if flags == 0x10:
            return at
        if flags == 0x04:
            left = word & ~0xFFF
            while left:
                _, at = string(data, at)
                left -= number(data, at, 8)
                at += 8
            continue
        if flags & ~0x20 not in (0x02, 0x08):
            raise PlainError(f"flags {flags:#x}")
        if not flags & 0x20:
            _, at = string(data, at)
        at += 1 if flags & 0x02 else 4096


def devices(data: bytes, start: int, found: PlainStream) -> PlainStream:
    """Cut the device sections as the vmdesc at the end says, wherever they lead to."""
    for eof in range(start, len(data) - 5):
        if data[eof] == 0 and data[eof + 1] == 6 and eof + 6 + number(data, eof + 2, 4) == len(data):
            at = start
            for device in json.loads(data[eof + 6 :])["devices"]:
                name, end = string(data, at + 5)
                body = end + 8
                after = body + size_of(device) + 5
                found.sections.append((name, number(data, end, 4), at, after))
                count = field_at(device, "cpreg_vmstate_array_len")
                if count is not None:
                    many = number(data, body + count, 4)
                    ids = body + (field_at(device, "cpreg_vmstate_indexes") or 0)
                    values = body + (field_at(device, "cpreg_vmstate_values") or 0)
                    found.registers[number(data, end, 4)] = {
                        number(data, ids + 8 * one, 8): values + 8 * one for one in range(many)
                    }
                at = after
            if at == eof:
                return found
            raise PlainError("the sections do not end at the end of file")
    raise PlainError("no vmdesc")
