"""The arm64 `cpu` section, version 22: its construct schema, and where its bounds and its register list are.

Source: QEMU `target/arm/machine.c` (`vmstate_arm_cpu` and its subsections); the layout is the same from 5.2 to 11.1.
"""

import re
from struct import Struct as PackedStruct
from typing import TYPE_CHECKING, Any, Final

from construct import Array, Bytes, Flag, Int8ub, Int32ub, Int64sb, Int64ub, Struct, this

from formats.arm.register_list import RegisterList, index_at
from formats.errors import MalformedStreamError, UnknownCpuVersionError

if TYPE_CHECKING:
    from construct import Construct

    from formats.vmstate.vmdesc import Layout

IDSTR: Final = "cpu"
VERSION: Final = 22
CPREG_ARRAYS: Final = ("cpreg_vmstate_indexes", "cpreg_vmstate_values")
"""The fields whose length is the number of registers."""
_CPREGS_PREFIX: Final = "cpreg_vmstate"

_BEFORE_CPREGS: Final = Struct(
    "regs" / Array(16, Int32ub),
    "xregs" / Array(32, Int64ub),
    "pc" / Int64ub,
    "cpsr" / Int32ub,
    "spsr" / Int32ub,
    "banked_spsr" / Array(8, Int64ub),
    "banked_r13" / Array(8, Int32ub),
    "banked_r14" / Array(8, Int32ub),
    "usr_regs" / Array(5, Int32ub),
    "fiq_regs" / Array(5, Int32ub),
    "elr_el" / Array(4, Int64ub),
    "sp_el" / Array(4, Int64ub),
)
_CPREGS: Final = Struct(
    "cpreg_vmstate_array_len" / Int32ub,
    "cpreg_vmstate_indexes" / Array(this.cpreg_vmstate_array_len, Int64ub),
    "cpreg_vmstate_values" / Array(this.cpreg_vmstate_array_len, Int64ub),
)
_AFTER_CPREGS: Final = Struct(
    "exclusive_addr" / Int64ub,
    "exclusive_val" / Int64ub,
    "exclusive_high" / Int64ub,
    "unused" / Bytes(8),
    "exception_syndrome" / Int32ub,
    "exception_fsr" / Int32ub,
    "exception_vaddress" / Int64ub,
    "gt_timer_phys" / Int64sb,
    "gt_timer_virt" / Int64sb,
    "power_state" / Flag,
)

CPU: Final = Struct(*_BEFORE_CPREGS.subcons, *_CPREGS.subcons, *_AFTER_CPREGS.subcons)
"""The body of a `cpu` section up to its subsections."""

SUBSECTIONS: Final[dict[str, "Construct[Any, Any]"]] = {
    "cpu/vfp": Struct("q" / Array(64, Int64ub), "fpsid" / Int32ub, "xregs" / Array(14, Int32ub), "fpscr" / Int32ub),
    "cpu/vfp/fpcr_fpsr": Struct("fpcr" / Int64ub, "fpsr" / Int64ub),
    "cpu/iwmmxt": Struct("regs" / Array(16, Int64ub), "cregs" / Array(16, Int32ub)),
    "cpu/thumb2ee": Struct("teecr" / Int32ub, "teehbr" / Int32ub),
    "cpu/sve": Struct("zregs_high" / Array(32 * 14, Int64ub), "pregs" / Array(17 * 4, Int64ub)),
    "cpu/sme": Struct("zarray" / Array(256 * 32, Int64ub)),
    "cpu/serror": Struct("pending" / Int8ub, "has_esr" / Int8ub, "esr" / Int64ub),
    "cpu/irq-line-state": Struct("irq_line_state" / Int32ub),
    "cpu/wfxt-timer": Struct("wfxt_timer" / Int64sb),
}
"""The subsections of A-profile processors. They follow each other; nesting leaves no mark on the wire but the name."""

_COUNT_OFFSET: Final[int] = _BEFORE_CPREGS.sizeof()
_AFTER_SIZE: Final[int] = _AFTER_CPREGS.sizeof()
_SUBSECTION_SIZES: Final[dict[bytes, int]] = {name.encode(): schema.sizeof() for name, schema in SUBSECTIONS.items()}
_BE32: Final = PackedStruct(">I")
_FIRST_ID: Final = _COUNT_OFFSET + _BE32.size

_RUN_OF_REGISTER_IDS: Final = re.compile(rb"(?:[\x40\x60][\x20-\x60].{6}){16}", re.DOTALL)
"""Sixteen KVM register ids in a row: KVM_REG_ARM or KVM_REG_ARM64 on top, then the size."""


def cpregs_end(held: bytearray | memoryview, body: int, end: int) -> int | None:
    """Return where the part of a `cpu` body before its subsections ends.

    Args:
        held: The buffer.
        body: Where the body begins in it.
        end: Where the body, or what is there of it, ends at the latest.

    Returns:
        The end; None when the bytes cannot be a version 22 `cpu`: too short, or ids that do not strictly ascend.
    """
    if end - body < _FIRST_ID + _AFTER_SIZE:
        return None
    count: int = _BE32.unpack_from(held, body + _COUNT_OFFSET)[0]
    first_id = body + _FIRST_ID
    cpregs: int = first_id + 16 * count + _AFTER_SIZE
    if cpregs > end:
        return None
    return cpregs if index_at(held, first_id, count) is not None else None


def quick_body_end(held: bytearray, body: int, end: int) -> int | None:
    """Return what `body_end` would, at a cost that does not grow with the register list, which is not read to its end.

    It serves to weigh section headers that a guest may have forged by the thousand.
    """
    if _RUN_OF_REGISTER_IDS.match(held, body + _FIRST_ID, end) is None:
        return None
    count: int = _BE32.unpack_from(held, body + _COUNT_OFFSET)[0]
    cpregs: int = body + _FIRST_ID + 16 * count + _AFTER_SIZE
    return _subsections_end(held, cpregs, end) if cpregs <= end else None


def body_end(held: bytearray | memoryview, body: int, end: int) -> int | None:
    """Return where a version 22 `cpu` body ends by its schema alone; None when it is no such body, or not to be told.

    It ends at the first byte that does not begin a known subsection.

    Args:
        held: The buffer.
        body: Where the body begins in it.
        end: Where the buffer ends.
    """
    position = cpregs_end(held, body, end)
    return None if position is None else _subsections_end(held, position, end)


def _subsections_end(held: bytearray | memoryview, position: int, end: int) -> int | None:
    while position + 2 <= end and held[position] == 0x05:
        name_end = position + 2 + held[position + 1]
        size = _SUBSECTION_SIZES.get(bytes(held[position + 2 : name_end]))
        if size is None:
            return None
        position = name_end + 4 + size
        if position > end:
            return None
    return position


def is_arm64(held: bytearray, body: int, end: int, layout: "Layout | None", version: int = VERSION) -> bool:
    """Tell whether a section named `cpu` is an arm64 one; x86, riscv and others use the name too.

    Args:
        held: The buffer.
        body: Where the section's body begins in it.
        end: Where it ends.
        layout: What the vmdesc says of it, if there is one. It names the cpreg arrays, or they stand where version 22
            has them. Without it, a long run of KVM register ids tells.
        version: The section's version id.
    """
    where_version_22_has_them = _RUN_OF_REGISTER_IDS.match(held, body + _FIRST_ID, end) is not None
    if layout is None:
        return where_version_22_has_them or _RUN_OF_REGISTER_IDS.search(held, body, end) is not None
    if layout.field(CPREG_ARRAYS[0]) is not None:  # the quick way
        return True
    if any(field.name.startswith(_CPREGS_PREFIX) for field in layout.fields):
        return True
    return version == VERSION and where_version_22_has_them and cpregs_end(held, body, end) is not None


def open_registers(
    held: bytearray, body: int, end: int, *, version: int, vcpu: int, layout: "Layout | None", offset: int
) -> RegisterList:
    """Open the registers of an arm64 `cpu` section whose bounds are known.

    Args:
        held: The buffer.
        body: Where the section's body begins in it.
        end: Where it ends.
        version: The section's version id.
        vcpu: The section's instance id.
        layout: What the vmdesc says of it; where it is there, it must agree with the schema.
        offset: Where the body begins in the stream; used in errors only.

    Raises:
        UnknownCpuVersionError: The version is not 22, or vmdesc and schema disagree on where the registers are.
        MalformedStreamError: Version 22, but not its layout.
    """
    section = f"'{IDSTR}' instance {vcpu}"
    if version != VERSION:
        raise UnknownCpuVersionError(
            f"arm64 cpu state of version {version}; version {VERSION} is the one that is known",
            offset=offset,
            section=section,
            advice="report the QEMU version to the authors of vmstate-proxy",
        )
    subsections = cpregs_end(held, body, end)
    if subsections is None:
        raise MalformedStreamError("its register list is cut off or out of order", offset=offset, section=section)
    registers = RegisterList(held, body + _COUNT_OFFSET, vcpu)
    schema_end = _subsections_end(held, subsections, end)
    if schema_end is not None and schema_end != end:
        raise UnknownCpuVersionError(
            f"it has {end - body} bytes, its known layout {schema_end - body}", offset=offset, section=section
        )
    if layout is not None:
        count = len(registers)
        expected = {
            "cpreg_vmstate_array_len": (_COUNT_OFFSET, 4),
            "cpreg_vmstate_indexes": (_FIRST_ID, 8 * count),
            "cpreg_vmstate_values": (_FIRST_ID + 8 * count, 8 * count),
        }
        for name, (where, length) in expected.items():
            found = layout.field(name)
            if found is None or (found[0], found[1].length) != (where, length):
                raise UnknownCpuVersionError(
                    f"the vmdesc does not have {name} at byte {where} of the section, where the known layout has it",
                    offset=offset,
                    section=section,
                )
    return registers
