"""The numbers of registers that a vmdesc states, changed in place: only their digits are others then."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

import msgspec

from formats.errors import UnlocatableSectionError
from formats.vmstate.cpu_section import CPREG_ARRAYS, IDSTR

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|(?P<number>-?[0-9]+(?P<real>[.eE][-+0-9.eE]*)?)')
_BETWEEN: Final = re.compile(rb"[ \t\r\n]*[\[,][ \t\r\n]*")
"""What stands before an element of a list."""
_HEADER: Final = 5
"""Bytes of a vmdesc's type and be32 length."""
_REGISTER_SIZE: Final = 8

_Span: TypeAlias = tuple[int, int]
"""Where a number's digits begin and end, in bytes."""


class _Placed(int):
    """A number of a JSON text, and where its digits stand."""

    span: _Span


class _Json(msgspec.Struct, frozen=True):
    devices: msgspec.Raw


class _Device(msgspec.Struct, frozen=True):
    name: str
    instance_id: int
    fields: msgspec.Raw = msgspec.Raw(b"[]")


_JSON: Final = msgspec.json.Decoder(_Json)
_DEVICES: Final = msgspec.json.Decoder(list[msgspec.Raw])
_DEVICE: Final = msgspec.json.Decoder(_Device)


def vmdesc_with_counts(record: bytes, counts: Mapping[int, int], offset: int) -> bytes:
    """Return a vmdesc, from its type byte on, with other numbers of registers.

    Args:
        record: 06, be32 length, JSON.
        counts: The number of registers, by vCPU.
        offset: Where the record begins in the stream; used in errors only.

    Raises:
        UnlocatableSectionError: It does not have the arrays of one of the vCPUs.
    """
    text = record[_HEADER:]
    found = _found_at_once(text)
    places = [
        (span, counts[vcpu])
        for vcpu, spans in (_found_by_number(text) if found is None else found)
        if vcpu in counts and len(spans) == len(CPREG_ARRAYS)
        for span in spans
    ]
    if len(places) != len(CPREG_ARRAYS) * len(counts):
        raise UnlocatableSectionError(
            "the vmdesc does not have the register arrays of every vCPU that registers are taken out of",
            offset=offset,
            section="vmdesc",
        )
    changed = b"".join(_replaced(text, sorted(places)))
    return record[:1] + len(changed).to_bytes(4, "big") + changed


def _replaced(text: bytes, places: list[tuple[_Span, int]]) -> Iterator[bytes]:
    position = 0
    for (start, end), number in places:
        yield text[position:start]
        yield b"%d" % number
        position = end
    yield text[position:]


# --- where they stand


def _found_by_number(text: bytes) -> list[tuple[int, list[_Span]]]:
    """Return where each vCPU's numbers stand, by a look at every number of the text."""
    devices = _placed(text)["devices"]
    return [(one["instance_id"], _array_lens(one.get("fields", ()))) for one in devices if one["name"] == IDSTR]


def _found_at_once(text: bytes) -> list[tuple[int, list[_Span]]] | None:
    """Return the same with a look at each vCPU, and at what they have in common once; None where that leaves a doubt.

    The guest stands meanwhile, and of hundreds of vCPUs each has more than a hundred numbers.
    """
    found: list[tuple[int, list[_Span]]] = []
    try:
        listed = _JSON.decode(text).devices
        position = _only(text, listed)
        for raw in _DEVICES.decode(listed):
            between = _BETWEEN.match(text, position)
            if between is None or not text.startswith(raw, between.end()):
                return None
            position = between.end()
            device = _DEVICE.decode(raw)
            if device.name == IDSTR:
                fields = position + _only(bytes(raw), device.fields)
                found.append(
                    (device.instance_id, [(fields + a, fields + b) for a, b in _kept_array_lens(bytes(device.fields))])
                )
            position += len(bytes(raw))
    except (ValueError, _DoubtError):  # what msgspec does not read, Python's own reader may
        return None
    return found


class _DoubtError(Exception):
    """A text does not stand in another exactly once."""


def _only(text: bytes, part: msgspec.Raw) -> int:
    if text.count(part) != 1:
        raise _DoubtError
    return text.find(part)


@lru_cache(maxsize=8)
def _kept_array_lens(fields: bytes) -> list[_Span]:
    """Return where the numbers of registers stand in the JSON of a vCPU's fields, of which a guest's have one."""
    return _array_lens(_placed(fields))


def _array_lens(fields: list[Mapping[str, Any]]) -> list[_Span]:
    return [
        field["array_len"].span
        for field in fields
        if field["name"] in CPREG_ARRAYS and field["size"] == _REGISTER_SIZE and "array_len" in field
    ]


def _placed(text: bytes) -> Any:  # noqa: ANN401
    """Read a JSON text; its integers know where they stand."""
    spans = (token.span() for token in _TOKEN.finditer(text) if token["number"] is not None and token["real"] is None)

    def placed(digits: str) -> _Placed:
        number = _Placed(digits)
        number.span = next(spans)
        return number

    return json.loads(text.decode(), parse_int=placed)
