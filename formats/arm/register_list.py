"""The registers of a vCPU as they stand in a stream: a be32 count, as many be64 ids, as many be64 values.

Source: QEMU `target/arm/machine.c` (`vmstate_arm_cpu`).
"""

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from itertools import compress, pairwise
from struct import Struct
from typing import Final, Protocol, TypeAlias

_BE32: Final = Struct(">I")
_BE64: Final = Struct(">Q")

_MOST_KEPT: Final = 4096
"""Registers; a longer list, which no QEMU sends, is not remembered."""

_Index: TypeAlias = tuple[tuple[int, ...], dict[int, int]]


def index_at(held: bytearray | memoryview, start: int, count: int) -> "_Index | None":
    """Return the ids of a register list, be64 each, and the index of each; None unless they strictly ascend.

    The vCPUs of a guest have the same ids, and each list is looked at more than once.
    """
    ids = bytes(held[start : start + 8 * count])
    return _index(ids) if count <= _MOST_KEPT else _index.__wrapped__(ids)


@lru_cache(maxsize=8)
def _index(ids: bytes) -> "_Index | None":
    numbers: tuple[int, ...] = Struct(f">{len(ids) // 8}Q").unpack(ids)
    if any(low >= high for low, high in pairwise(numbers)):
        return None
    return numbers, {register_id: index for index, register_id in enumerate(numbers)}


@lru_cache(maxsize=8)
def _kept(ids: tuple[int, ...], removed: frozenset[int]) -> tuple[bytes, tuple[bool, ...]]:
    """Return the count and the ids of a list without some registers, and which values stay."""
    keeps = tuple(register_id not in removed for register_id in ids)
    kept = tuple(compress(ids, keeps))
    return Struct(f">I{len(kept)}Q").pack(len(kept), *kept), keeps


class Elsewhere(Protocol):
    """A register of a vCPU that stands in another section than `cpu`."""

    @property
    def value(self) -> int:
        """Its value."""

    def replace(self, value: int) -> None:
        """Write another value in its place."""


class RegisterList:
    """The system registers of one vCPU, as a view of the buffer that holds its `cpu` section; it patches in place.

    Values are be64 whatever the register's own size; ids are KVM register ids in strictly ascending order.

    Attributes:
        vcpu: The vCPU's index, which is the section's instance id.
        ids: The register ids in the order of the wire.
        elsewhere: Registers of the vCPU that stand in other sections, by id; `get` and assignment reach them, too.
    """

    __slots__ = ("_buffer", "_position_of", "_values", "elsewhere", "ids", "vcpu")

    def __init__(self, buffer: bytearray, start: int, vcpu: int) -> None:
        """Look at the list whose count stands at `buffer[start:]`; its ids must strictly ascend, see `index_at`."""
        count: int = _BE32.unpack_from(buffer, start)[0]
        first_id = start + _BE32.size
        index = index_at(buffer, first_id, count)
        assert index is not None
        self.vcpu = vcpu
        self.elsewhere: Mapping[int, Elsewhere] = {}
        self.ids: tuple[int, ...] = index[0]
        self._buffer = buffer
        self._values: int = first_id + 8 * count
        self._position_of = index[1]

    def __contains__(self, register_id: int) -> bool:
        return register_id in self._position_of

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, register_id: int) -> int:
        value: int = _BE64.unpack_from(self._buffer, self._offset(register_id))[0]
        return value

    def __setitem__(self, register_id: int, value: int) -> None:
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{value:#x} does not fit into 64 bits")
        if register_id in self.elsewhere:
            self.elsewhere[register_id].replace(value)
            return
        _BE64.pack_into(self._buffer, self._offset(register_id), value)

    def get(self, register_id: int) -> int | None:
        """Return the register's value; None when the stream does not hold it."""
        index = self._position_of.get(register_id)
        if index is not None:
            return self[register_id]
        there = self.elsewhere.get(register_id)
        return None if there is None else there.value

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield (id, value) in the order of the wire."""
        return zip(self.ids, self.values(), strict=True)

    def values(self) -> tuple[int, ...]:
        """Return the values in the order of the wire."""
        return Struct(f">{len(self.ids)}Q").unpack_from(self._buffer, self._values)

    @property
    def span(self) -> tuple[int, int]:
        """Where the count and the two arrays begin and end in the buffer."""
        return self._values - 8 * len(self.ids) - _BE32.size, self._values + 8 * len(self.ids)

    def without(self, removed: Collection[int]) -> bytes:
        """Return the count and the two arrays as they are without some registers."""
        head, keeps = _kept(self.ids, frozenset(removed))
        values = tuple(compress(self.values(), keeps))
        return head + Struct(f">{len(values)}Q").pack(*values)

    def _offset(self, register_id: int) -> int:
        return self._values + 8 * self._position_of[register_id]
