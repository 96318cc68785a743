"""The registers of the `cpu` section: KVM's 64-bit ids, their names, and what kind of thing each register is.

An id holds, from the top: architecture (8 bits: 0x60 arm64, 0x40 arm), 0, log2 of the size in bytes (4 bits), and the
encoding. Names stand in `sysregs.txt`; those that follow a rule (reserved ID registers, demultiplexed CCSIDRs, core
and SVE registers) are made here.

Source: Linux `include/uapi/linux/kvm.h` and `arch/arm64/include/uapi/asm/kvm.h`; for AArch32 ids, which only TCG
writes, QEMU `target/arm/cpregs.h` (`ENCODE_CP_REG`, `cpreg_to_kvm_id`).
"""

import enum
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

from formats.tables import read_rows

MIDR_EL1: Final = 0x603000000013C000

_SYSREG: Final = 0x6030_0000_0013_0000
_CCSIDR: Final = 0x6020_0000_0011_0000
_FIRMWARE: Final = 0x6030_0000_0014_0000
_FEATURE_BITMAP: Final = 0x6030_0000_0016_0000
_DEVICE: Final = 0x6020_0000_00FF_0000
_COPROC_32BIT: Final = 0x4020_0000_0000_0000
_COPROC_64BIT: Final = 0x4030_0000_0000_0000
_NON_SECURE: Final = 1 << 29

_BLOCK_MASK: Final = 0xFFFF_FFFF_FFFF_0000
_SIZE_SHIFT: Final = 52
_SIZE_MASK: Final = 0xF << _SIZE_SHIFT
_UNSIZED_BLOCKS: Final = {
    0x6000_0000_0010_0000: "KVM_REG_ARM_CORE",
    0x6000_0000_0015_0000: "KVM_REG_ARM64_SVE",
}
"""Blocks whose registers differ in size, so that only size and number together name one."""

_UNSIZED_NAME: Final = re.compile(r"(KVM_REG_ARM_CORE|KVM_REG_ARM64_SVE)_U([0-9]{1,6})\[0X([0-9A-F]{4})\]")
_HEX_ID: Final = re.compile(r"0X[0-9A-F]{1,16}")


class Kind(enum.Enum):
    """What a register holds, as far as carrying it to another host is concerned."""

    IDENTIFICATION = "identification"
    """Describes the processor; KVM checks it against the host."""
    CACHE_ID = "cache_id"
    """A CCSIDR_EL1 as CSSELR_EL1 would select it; KVM checks it against the host."""
    FIRMWARE = "firmware"
    """Version or mitigation state that KVM, acting as firmware, reports."""
    FEATURE_BITMAP = "feature_bitmap"
    """Which hypercalls KVM offers."""
    TIMER = "timer"
    """Control or compare value of a generic timer."""
    COUNTER = "counter"
    """Count of the generic timer; it moves while the guest runs."""
    STATE = "state"
    """Ordinary state of the guest, and all that is not known better."""


@dataclass(frozen=True, slots=True)
class Register:
    """One register of the `cpu` section.

    Attributes:
        id: The KVM register id.
        name: A name that no other id has; the id in hexadecimal for an unknown register.
        kind: What it holds.
        known: Whether the name is more than the id.
    """

    id: int
    name: str
    kind: Kind
    known: bool

    @property
    def invariant(self) -> bool:
        """Whether it belongs to the host's processor rather than to the guest."""
        return self.kind in (Kind.IDENTIFICATION, Kind.CACHE_ID)


class UnknownRegisterError(ValueError):
    """A text is neither the name of a register nor an id.

    Attributes:
        text: What was given.
        suggestions: Names that look like it, best first.
    """

    def __init__(self, text: str, suggestions: tuple[str, ...]) -> None:
        hint = f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""
        super().__init__(f"unknown register {text!r}{hint}")
        self.text = text
        self.suggestions = suggestions


# Bounded, for ids come from streams that nobody vouches for.
@functools.lru_cache(maxsize=4096)
def describe(register_id: int) -> Register:
    """Tell what is known of a register id; any id has an answer."""
    if (known := _named().get(register_id)) is not None:
        return Register(register_id, *known, known=True)
    block = register_id & _BLOCK_MASK
    if (prefix := _UNSIZED_BLOCKS.get(block & ~_SIZE_MASK)) is not None:
        name = f"{prefix}_U{8 * size_of(register_id)}[0x{register_id & 0xFFFF:04x}]"
        return Register(register_id, name, Kind.STATE, known=True)
    kind = {_FIRMWARE: Kind.FIRMWARE, _FEATURE_BITMAP: Kind.FEATURE_BITMAP}.get(block, Kind.STATE)
    return Register(register_id, format_id(register_id), kind, known=False)


def parse_register(text: str) -> int:
    """Give the id of a register from its name, in any case, or from the id in hexadecimal with `0x`.

    Raises:
        UnknownRegisterError: It is neither.
    """
    wanted = text.strip().upper()
    if _HEX_ID.fullmatch(wanted):
        return int(wanted, 16)
    names = _names()
    if (register_id := names.get(wanted)) is not None:
        return register_id
    if (match := _UNSIZED_NAME.fullmatch(wanted)) is not None:
        bits = int(match[2])
        block = next(block for block, prefix in _UNSIZED_BLOCKS.items() if prefix == match[1])
        register_id = block | (max(bits // 8, 1).bit_length() - 1) << _SIZE_SHIFT & _SIZE_MASK | int(match[3], 16)
        if describe(register_id).name.upper() == wanted:
            return register_id
    import difflib  # for errors only

    close = difflib.get_close_matches(wanted, names, n=3)
    raise UnknownRegisterError(text, tuple(describe(names[name]).name for name in close))


def format_id(register_id: int) -> str:
    """Write an id as `0x` and 16 hexadecimal digits."""
    return f"0x{register_id:016x}"


def size_of(register_id: int) -> int:
    """Give the size in bytes that an id states (`KVM_REG_SIZE_MASK`); the stream gives every register 8 bytes."""
    return 1 << ((register_id & _SIZE_MASK) >> _SIZE_SHIFT)


def _sysreg_id(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    return _SYSREG | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def _coproc_id(coproc: int, opc1: int, crn: int, crm: int, opc2: int) -> int:
    return _COPROC_32BIT | coproc << 16 | crn << 11 | crm << 7 | opc1 << 3 | opc2


def _coproc_id_from_key(key: str) -> int:
    fields = [int(field.lstrip("pc")) for field in key.split(".")]
    if len(fields) == 3:
        coproc, opc1, crm = fields
        return _COPROC_64BIT | coproc << 16 | crm << 7 | opc1 << 3
    return _coproc_id(*fields)


def _banks(register_id: int, name: str) -> Iterator[tuple[int, str]]:
    """Give both banks of an AArch32 register; the plain name is the non-secure one's, the one a guest sees."""
    yield register_id | _NON_SECURE, name
    yield register_id, f"{name}_S"


@functools.cache
def _named() -> dict[int, tuple[str, Kind]]:
    """Give name and kind of every register that has a fixed name, by id."""
    registers = {register_id: (name, kind) for register_id, name, kind in _numbered()}
    for register_id, name, kind in _listed():
        usual = registers[register_id][1] if register_id in registers else Kind.STATE
        registers[register_id] = name, kind or usual
    return registers


def _numbered() -> Iterator[tuple[int, str, Kind]]:
    """Give id, name and kind of the registers whose names follow a rule."""
    # Arm keeps the whole of these spaces for identification; reserved places read as zero, and are listed too.
    for crm, op2 in product(range(1, 8), range(8)):
        yield _sysreg_id(3, 0, 0, crm, op2), f"ID_RES_3_0_0_{crm}_{op2}", Kind.IDENTIFICATION
    for crm, opc2 in product(range(1, 16), range(8)):
        for bank, name in _banks(_coproc_id(15, 0, 0, crm, opc2), f"ID_RES_P15_0_C0_C{crm}_{opc2}"):
            yield bank, name, Kind.IDENTIFICATION
    for csselr in range(256):
        yield _CCSIDR | csselr, f"CCSIDR_EL1[{csselr}]", Kind.CACHE_ID


def _listed() -> Iterator[tuple[int, str, Kind | None]]:
    """Give id and name of the registers in `sysregs.txt`, and their kind where it is not the place's usual one."""
    sections = read_rows("formats.arm", "sysregs.txt")
    for key, name, *kind in sections["aarch64"]:
        yield _sysreg_id(*map(int, key.split("."))), name, _kind(kind)
    for key, plain, *kind in sections["aarch32"]:
        for bank, name in _banks(_coproc_id_from_key(key), plain):
            yield bank, name, _kind(kind)
    for key, name in sections["device"]:
        yield _DEVICE | int(key), name, Kind.STATE
    for key, name in sections["firmware"]:
        yield _FIRMWARE | int(key), name, Kind.FIRMWARE
    for key, name in sections["feature_bitmap"]:
        yield _FEATURE_BITMAP | int(key), name, Kind.FEATURE_BITMAP


def _kind(words: list[str]) -> Kind | None:
    return Kind(words[0]) if words else None


@functools.cache
def _names() -> dict[str, int]:
    return {name.upper(): register_id for register_id, (name, _) in _named().items()}
