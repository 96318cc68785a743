"""Taking registers out of a device state: ids, values and count go, and so do they in the vmdesc.

Where nothing is removed, nothing is rebuilt: what stands between the register lists is copied as it is, and in the JSON
of the vmdesc only the digits of the numbers that change.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from formats.arm_cpu import CPREG_ARRAYS, IDSTR
from formats.errors import UnlocatableSectionError

if TYPE_CHECKING:
    from formats.events import DeviceState, Raw
    from formats.register_list import RegisterList

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|(?P<number>-?[0-9]+(?P<real>[.eE][-+0-9.eE]*)?)')
_VMDESC_HEADER: Final = 5
"""Bytes of a vmdesc's type and be32 length."""
_REGISTER_SIZE: Final = 8


class _Placed(int):
    """A number of a JSON text, and where its digits stand."""

    span: tuple[int, int]


def without_registers(
    state: "DeviceState", removed: "Iterable[tuple[RegisterList, Collection[int]]]", counts: Mapping[int, int]
) -> bytes:
    """Return the bytes of a device state without some of its registers.

    Args:
        state: The device state; its vCPUs may have been patched.
        removed: vCPUs of the state, in the order of the wire, each with the ids that go.
        counts: How many registers are left, by vCPU, for the vmdesc.

    Raises:
        UnlocatableSectionError: The vmdesc does not have the arrays.
    """
    pieces: list[Raw] = []
    position = 0
    with memoryview(state.held) as held:
        for registers, ids in removed:
            start, end = registers.span
            pieces += held[position:start], registers.without(ids)
            position = end
        vmdesc = len(held) if state.vmdesc is None else state.sections[-1].end + 1
        pieces.append(held[position:vmdesc])
        if state.vmdesc is not None:
            pieces.append(vmdesc_with_counts(bytes(held[vmdesc:]), counts, state.offset + vmdesc))
        return b"".join(pieces)


def vmdesc_with_counts(record: bytes, counts: Mapping[int, int], offset: int) -> bytes:
    """Return a vmdesc, from its type byte on, with other numbers of registers.

    Args:
        record: 06, be32 length, JSON.
        counts: The number of registers, by vCPU.
        offset: Where the record begins in the stream; used in errors only.

    Raises:
        UnlocatableSectionError: It does not have the arrays of one of the vCPUs.
    """
    text = record[_VMDESC_HEADER:].decode()
    tokens = _numbers(text)

    def placed(digits: str) -> _Placed:
        number = _Placed(digits)
        number.span = next(tokens)
        return number

    devices = json.loads(text, parse_int=placed)["devices"]
    changes: list[tuple[tuple[int, int], int]] = []
    for device in devices:
        if device["name"] == IDSTR and device["instance_id"] in counts:
            found = [field["array_len"] for field in device.get("fields", ()) if _is_register_array(field)]
            if len(found) == len(CPREG_ARRAYS):
                changes += [(number.span, counts[device["instance_id"]]) for number in found]
    if len(changes) != len(CPREG_ARRAYS) * len(counts):
        raise UnlocatableSectionError(
            "the vmdesc does not have the register arrays of every vCPU that registers are taken out of",
            offset=offset,
            section="vmdesc",
        )
    changed = "".join(_replaced(text, sorted(changes))).encode()
    return record[:1] + len(changed).to_bytes(4, "big") + changed


def _is_register_array(field: Mapping[str, Any]) -> bool:
    return field["name"] in CPREG_ARRAYS and field["size"] == _REGISTER_SIZE and "array_len" in field


def _numbers(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the integers of a JSON text stand, in the order in which a parser comes to them."""
    for token in _TOKEN.finditer(text):
        if token["number"] is not None and token["real"] is None:
            yield token.span()


def _replaced(text: str, changes: list[tuple[tuple[int, int], int]]) -> Iterator[str]:
    position = 0
    for (start, end), number in changes:
        yield text[position:start]
        yield str(number)
        position = end
    yield text[position:]
