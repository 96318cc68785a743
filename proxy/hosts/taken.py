"""What a host's KVM takes in a register beside its own value: asked, field by field, and kept in the profile.

Kernels change faster than rules about them. Linux 7.2 takes ID_AA64MMFR2_EL1.NV of older kernels and ignores it, which
no mask tells (`set_id_aa64mmfr2_el1` in `arch/arm64/kvm/sys_regs.c`); before 6.7 there are no masks at all.
"""

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from formats.arm.id_fields import IdField, Order, every_bit
from formats.arm.sysreg import Kind, describe, parse_register

if TYPE_CHECKING:
    from proxy.hosts.kvm import ScratchVcpu

Taken: TypeAlias = Mapping[int, "tuple[TakenField, ...]"]
"""By register id; what is not there takes its own value alone."""

_NIBBLE: Final = 4
_WHOLE: Final = "value"
_AARCH32_ID: Final = re.compile(r"^(ID|MVFR)(?!_AA64)")
_RESERVED: Final = "ID_RES_"
_PSCI: Final = parse_register("KVM_REG_ARM_PSCI_VERSION")
_PSCI_VERSIONS: Final = (0x1, 0x2, *range(0x1_0000, 0x1_0008))
"""0.1 and 0.2, 1.0 to 1.7. Source: Linux `include/uapi/linux/psci.h`, `PSCI_VERSION`."""
_LEVELS: Final = (*range(8), *range(0x10, 0x18))
"""Of a mitigation: bits 3:0, and bit 4, by which KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2 says that it is on."""
_HYPERCALL_BITS: Final = 8


@dataclass(frozen=True, slots=True)
class TakenField:
    """The values that KVM takes in one field of a register beside the host's own.

    Attributes:
        name: The field's name; `value` for the whole register.
        low: Its lowest bit.
        width: How many bits it has.
        values: The values, unsigned; None for any.
    """

    name: str
    low: int
    width: int
    values: frozenset[int] | None

    @property
    def mask(self) -> int:
        """Its bits, in place."""
        return (1 << self.width) - 1 << self.low

    def takes(self, value: int) -> bool:
        """Tell whether KVM takes the field of this value of the register."""
        return self.values is None or (value & self.mask) >> self.low in self.values

    def __str__(self) -> str:
        if self.values is None:
            return f"{self.name} any"
        return f"{self.name} {','.join(_ranges(sorted(self.values)))}"


def parse_taken(register: int, text: str) -> TakenField:
    """Read a field as `str()` writes it: `CSV2 0-1`, `bits 51:48 0`, `IMPDEF any`, `value 2,65536-65537`.

    Raises:
        ValueError: It is none, or the register has no such field.
    """
    name, _, words = text.rpartition(" ")
    field = next((one for one in (_WHOLE_FIELD, *parts_of(register)) if one.name == name), None)
    if field is None:
        raise ValueError(f"{describe(register).name} has no field {name!r}")
    if words == "any":
        return TakenField(field.name, field.low, field.width, None)
    values: set[int] = set()
    for word in words.split(","):
        first, dash, last = word.partition("-")
        last = last if dash else first
        if not (first.isascii() and first.isdecimal() and last.isascii() and last.isdecimal()):
            raise ValueError(f"{word!r} is neither a number nor a range of numbers, as 0-2")
        begin, end = int(first), int(last)
        if not begin <= end < 1 << min(field.width, 32) or end - begin > 1 << 16:
            raise ValueError(f"{word!r} does not fit into {field.name}, which has {field.width} bits")
        values.update(range(begin, end + 1))
    return TakenField(field.name, field.low, field.width, frozenset(values))


def refused_parts(register: int, value: int, own: int, taken: Taken) -> list[IdField]:
    """Give the parts of a register for which a host was seen to refuse a value; it takes the value if there are none.

    Args:
        register: The register.
        value: What is to be written.
        own: The host's own value.
        taken: What the host was asked.
    """
    fields = {field.low: field for field in taken.get(register, ())}
    whole = fields.get(0)
    if whole is not None and whole.name == _WHOLE:
        return [] if value == own or whole.takes(value) else [_WHOLE_FIELD]
    return [
        part
        for part in parts_of(register)
        if (value ^ own) & part.mask and not (part.low in fields and fields[part.low].takes(value))
    ]


@functools.lru_cache(maxsize=4096)
def parts_of(register: int) -> tuple[IdField, ...]:
    """Cut an ID register into its fields, and what has no name into pieces of four bits; a bitmap into its bits."""
    kind = describe(register).kind
    if kind is Kind.FEATURE_BITMAP:
        return tuple(IdField(f"bit {bit}", bit, 1, signed=False, order=Order.EXACT) for bit in range(64))
    if kind is Kind.CACHE_ID:
        return every_bit(register)
    return tuple(piece for field in every_bit(register) for piece in _cut(field))


def measure(vcpu: "ScratchVcpu", register: int, own: int, mask: int | None) -> tuple[TakenField, ...]:
    """Ask KVM which values it takes in a register, one field at a time; the register is left with its own value.

    Args:
        vcpu: A scratch vCPU; no guest runs in it.
        register: One whose value belongs to the host.
        own: Its value.
        mask: The bits that KVM says may be written; None when it says nothing of this register.
    """
    kind = describe(register).kind
    if kind is Kind.FIRMWARE:
        candidates = _PSCI_VERSIONS if register == _PSCI else _LEVELS
        return _found([_tried(vcpu, register, own, _WHOLE_FIELD, [one for one in candidates if one != own])])
    if kind is Kind.FEATURE_BITMAP:
        bits = parts_of(register)[:_HYPERCALL_BITS]
        return _found(_tried(vcpu, register, own, bit, _others(bit, own)) for bit in bits)
    name = describe(register).name
    old = _AARCH32_ID.match(name) is not None
    if (old and mask == 0) or (name.startswith(_RESERVED) and not vcpu.taken(register, [own ^ 1])):
        return ()  # for these, the masks tell; and KVM holds what is reserved to 0 as a whole
    return _found(_tried(vcpu, register, own, part, _candidates(part, own, few=old)) for part in parts_of(register))


def _tried(vcpu: "ScratchVcpu", register: int, own: int, part: IdField, candidates: "Collection[int]") -> TakenField:
    rest = own & ~part.mask
    took = vcpu.taken(register, [rest | value << part.low for value in candidates])
    if took:
        vcpu.set(register, own)
    if part.width > _NIBBLE and part.name != _WHOLE and len(took) == len(candidates):
        return TakenField(part.name, part.low, part.width, None)
    return TakenField(part.name, part.low, part.width, frozenset((value & part.mask) >> part.low for value in took))


def _found(fields: Iterable[TakenField]) -> tuple[TakenField, ...]:
    return tuple(field for field in fields if field.values is None or field.values)


def _others(part: IdField, own: int) -> list[int]:
    present = (own & part.mask) >> part.low
    return [value for value in range(1 << part.width) if value != present]


def _candidates(part: IdField, own: int, *, few: bool) -> list[int]:
    """Choose the values to try: all others; of what is wide, has no name or is of AArch32, those that tell."""
    present, most = (own & part.mask) >> part.low, (1 << part.width) - 1
    if part.width > _NIBBLE:
        return sorted({0, max(present - 1, 0), min(present + 1, most), most} - {present})
    if few or part.name.startswith("bit"):
        return sorted({*range(present), min(present + 1, most), most} - {present})
    return _others(part, own)


def _cut(field: IdField) -> Iterable[IdField]:
    if not field.name.startswith("bit"):
        yield field
        return
    low, end = field.low, field.low + field.width
    while low < end:
        high = min((low // _NIBBLE + 1) * _NIBBLE, end)
        name = f"bit {low}" if high - low == 1 else f"bits {high - 1}:{low}"
        yield IdField(name, low, high - low, signed=False, order=Order.EXACT)
        low = high


def _ranges(values: list[int]) -> Iterable[str]:
    begin = 0
    for index, value in enumerate(values):
        if index + 1 == len(values) or values[index + 1] != value + 1:
            yield str(value) if index == begin else f"{values[begin]}-{value}"
            begin = index + 1


_WHOLE_FIELD: Final = IdField(_WHOLE, 0, 64, signed=False, order=Order.EXACT)
