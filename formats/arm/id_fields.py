"""The fields of the ID registers, and the order by which KVM compares each with the host's own.

Source: Linux `arch/arm64/kvm/sys_regs.c` (`arm64_check_features`, `kvm_arm64_ftr_safe_value`) and
`arch/arm64/kernel/cpufeature.c` (`arm64_ftr_value`, `arm64_ftr_safe_value`), alike in 6.12 and 7.2. The fields stand in
`id_fields.txt`.
"""

import enum
import functools
from dataclasses import dataclass
from typing import Final

from formats.arm.sysreg import describe, size_of
from formats.tables import read_rows

_AARCH32: Final = 0x40
_REGISTER_BITS: Final = 64


class Order(enum.Enum):
    """Which values of a field a host takes, beside its own."""

    LOWER_SAFE = "lower"
    """Lower ones: less of a feature."""
    HIGHER_SAFE = "higher"
    """Higher ones: the field warns of something."""
    HIGHER_OR_ZERO_SAFE = "higher-or-zero"
    """Higher ones, and 0, which says nothing; a host that has 0 takes no other."""
    EXACT = "exact"
    """None; so also in fields that Linux does not list.

    In a listed field that is writable, KVM takes a constant too (`safe_val`), left out here: in Linux 6.12, 0 in the
    fields of ID_AA64FPFR0_EL1; in 7.2, also VIPT in CTR_EL0.L1Ip and 1 in ID_AA64MMFR0_EL1.TGRAN4_2 and its kin.
    """


@dataclass(frozen=True, slots=True)
class IdField:
    """A field of an ID register.

    Attributes:
        name: As Linux and the architecture call it; `bits 51:48` for bits that have no name.
        low: Its lowest bit.
        width: How many bits it has.
        signed: Whether its value is two's complement; all ones is then -1, below 0.
        order: How KVM compares it, if the host lets it be written at all.
    """

    name: str
    low: int
    width: int
    signed: bool
    order: Order

    @property
    def mask(self) -> int:
        """Its bits, in place."""
        return (1 << self.width) - 1 << self.low

    def value(self, register_value: int) -> int:
        """Give its value in a value of the register; below 0 only where signed."""
        value = (register_value & self.mask) >> self.low
        if self.signed and value >> self.width - 1:
            value -= 1 << self.width
        return value

    def change(self, old: int, new: int) -> str:
        """Write what becomes of it from one value of the register to another, for people: `CSV2 1 -> 0`."""
        return f"{self.name} {self.value(old)} -> {self.value(new)}"

    def takes(self, value: int, limit: int) -> bool:
        """Tell whether a host that has `limit` in this field takes `value`, both as from `value()`."""
        if value == limit:
            return True
        match self.order:
            case Order.LOWER_SAFE:
                return value < limit
            case Order.HIGHER_SAFE:
                return value > limit
            case Order.HIGHER_OR_ZERO_SAFE:
                return value == 0 or (limit != 0 and value > limit)
            case Order.EXACT:
                return False


# Bounded, for ids come from streams that nobody vouches for.
@functools.lru_cache(maxsize=4096)
def fields_of(register_id: int) -> tuple[IdField, ...]:
    """Give the named fields of a register, ascending; none for a register that is not in the table.

    A CCSIDR_EL1 has them whatever its index. An AArch32 register has those in the lower half of the AArch64 register
    that is architecturally mapped to it.
    """
    name, _, _index = describe(register_id).name.partition("[")
    names = [name]
    if register_id >> 56 == _AARCH32:
        name = name.removesuffix("_S")
        names = [f"{name}_EL1", f"{name}_EL0", name]
    table = _table()
    rows = next((table[name] for name in names if name in table), [])
    fields = sorted((_parse_field(*row) for row in rows), key=lambda field: field.low)
    bits = 8 * size_of(register_id)
    return tuple(
        IdField(field.name, field.low, min(field.width, bits - field.low), field.signed, field.order)
        for field in fields
        if field.low < bits
    )


@functools.lru_cache(maxsize=4096)
def differing(register_id: int, old: int, new: int) -> tuple[IdField, ...]:
    """Give the fields in which two values of a register differ, ascending.

    Bits without a name are given too, as fields that are called after their place.
    """
    return tuple(field for field in every_bit(register_id) if (old ^ new) & field.mask)


def refused_fields(register_id: int, value: int, limit: int, writable: int) -> list[IdField]:
    """Give the fields for which KVM refuses a value of a register; it takes the value if there are none.

    This is `arm64_check_features`, by which KVM judges what lies at 3.0.0.1-7.x, and CTR_EL0. The rest has rules of its
    own: MIDR_EL1, REVIDR_EL1, AIDR_EL1, CLIDR_EL1, CCSIDR_EL1. Nor are those rules here that KVM adds for single
    registers, such as that ID_AA64DFR0_EL1.DebugVer is never below 6.

    Args:
        register_id: The register.
        value: What is to be written.
        limit: What the host has there when a vCPU is made.
        writable: The bits that may be written, as KVM_ARM_GET_REG_WRITABLE_MASKS gives them; 0 for a Linux without it.
            A field of which it holds only a part cannot be changed.
    """
    return [
        field
        for field in differing(register_id, value, limit)
        if field.mask & ~writable or not field.takes(field.value(value), field.value(limit))
    ]


@functools.lru_cache(maxsize=4096)
def every_bit(register_id: int) -> tuple[IdField, ...]:
    """Give the fields of a register, and stand-ins for what lies between them."""
    fields: list[IdField] = []
    end = 0
    for field in fields_of(register_id):
        if field.low > end:
            fields.append(_unnamed(end, field.low))
        fields.append(field)
        end = field.low + field.width
    if end < _REGISTER_BITS:
        fields.append(_unnamed(end, _REGISTER_BITS))
    return tuple(fields)


def _unnamed(low: int, end: int) -> IdField:
    name = f"bit {low}" if end - low == 1 else f"bits {end - 1}:{low}"
    return IdField(name, low, end - low, signed=False, order=Order.EXACT)


@functools.cache
def _table() -> dict[str, list[list[str]]]:
    return read_rows("formats.arm", "id_fields.txt")


def _parse_field(name: str, place: str, *words: str) -> IdField:
    high, _, low = place.partition(":")
    lowest = int(low or high)
    signed = "signed" in words
    orders = [Order(word) for word in words if word != "signed"]
    return IdField(name, lowest, int(high) - lowest + 1, signed, orders[0] if orders else Order.EXACT)
