"""What a destination's KVM takes, as far as its profile tells.

A probed profile holds the kernel's own answers (`proxy.hosts.taken`). One that was learned from a stream, or is of
schema_version 1, holds values, a register list and perhaps writable masks; for these, rules stand here. Where it leaves
something open, a register is taken to be fixed.
Source: Linux `arch/arm64/kvm/sys_regs.c` (`set_id_reg`, `set_clidr`, `set_ccsidr`) and `arch/arm64/kvm/hypercalls.c`
(`kvm_arm_set_fw_reg`, `kvm_arm_set_fw_reg_bmap`); 6.1 and 6.12 answer so.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from formats.arm.id_fields import refused_fields
from formats.arm.sysreg import Kind, describe, parse_register
from proxy.hosts.qemu_tolerance import tolerated
from proxy.hosts.taken import refused_parts

if TYPE_CHECKING:
    from formats.arm.id_fields import IdField
    from proxy.hosts.profile import HostProfile
    from proxy.hosts.taken import Taken

NO_SUCH_REGISTER: Final = "the destination has no such register"

_FIXED: Final = frozenset(map(parse_register, ("MIDR_EL1", "REVIDR_EL1", "AIDR_EL1")))
"""By every kernel, for a QEMU that does not ask for KVM_CAP_ARM_WRITABLE_IMP_ID_REGS, as none up to 11.1 does."""
_CLIDR: Final = parse_register("CLIDR_EL1")
_CTR: Final = parse_register("CTR_EL0")
_FIRST_CCSIDR: Final = parse_register("CCSIDR_EL1[0]")
_LAST_CCSIDR: Final = parse_register("CCSIDR_EL1[13]")
_CLIDR_BITS: Final = (1 << 47) - 1

_LEVELS: Final = {
    parse_register("KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1"): ("NOT_AVAIL", "AVAIL", "NOT_REQUIRED"),
    parse_register("KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2"): ("NOT_AVAIL", "UNKNOWN", "AVAIL", "NOT_REQUIRED"),
    parse_register("KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3"): ("NOT_AVAIL", "AVAIL", "NOT_REQUIRED"),
}
"""What the low four bits of a mitigation register say (`arch/arm64/include/uapi/asm/kvm.h`), in rising order."""

_WORKAROUND_2: Final = parse_register("KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2")
_UNKNOWN, _AVAIL = 1, 2


def refused_by(host: "HostProfile", registers: Iterable[tuple[int, int | None]]) -> dict[int, str]:
    """Tell which registers a host does not take, and why, by register id.

    Args:
        host: The destination.
        registers: Ids and values of one vCPU; None for a value that is not known, which is taken to be fine.
    """
    refused = {}
    passed_over = tolerated(host.qemu)
    for register, value in registers:
        if host.lacks(register):
            if register not in passed_over:
                refused[register] = NO_SUCH_REGISTER
            continue
        own = host.values.get(register)
        if own is None or value is None or own == value:
            continue
        why = _refusal(host, register, value, own)
        if why is not None:
            refused[register] = why
    return refused


def is_assumed(host: "HostProfile", register: int) -> bool:
    """Whether a register is only taken to be fixed: the profile has neither the kernel's answers nor its version."""
    if host.taken is not None or host.writable is not None or host.kernel is not None or host.lacks(register):
        return False
    return describe(register).invariant and register not in _FIXED


def _refusal(host: "HostProfile", register: int, value: int, own: int) -> str | None:
    if host.taken is not None:
        return _refused_when_asked(host, host.taken, register, value)
    match describe(register).kind:
        case Kind.FIRMWARE:
            return _lost_level(register, value, own)
        case Kind.FEATURE_BITMAP:
            missing = value & ~own
            return f"the destination does not offer the hypercalls of bits {missing:#x}" if missing else None
        case Kind.CACHE_ID:
            return None if _takes_ccsidr(host, register, value) else f"fixed, {own:#x} on the destination"
        case Kind.IDENTIFICATION if register == _CLIDR:
            return None if _takes_clidr(host, value) else _not_in_place_of(own)
        case Kind.IDENTIFICATION:
            return changes_of(refused_fields(register, value, own, (host.writable or {}).get(register, 0)), value, own)
        case _:
            return None


def _refused_when_asked(host: "HostProfile", taken: "Taken", register: int, value: int) -> str | None:
    own = host.values[register]
    fields = refused_parts(register, value, own, taken)
    if not fields:
        # Its fields hang together; they were tried one at a time.
        return _not_in_place_of(own) if register == _CLIDR and not _takes_clidr(host, value) else None
    match describe(register).kind:
        case Kind.FIRMWARE:
            return _lost_level(register, value, own) or f"{value:#x} on the source, {own:#x} on the destination"
        case Kind.FEATURE_BITMAP:
            missing = sum(field.mask for field in fields)
            return f"the destination does not offer the hypercalls of bits {missing:#x}"
        case _:
            return changes_of(fields, value, own)


def changes_of(fields: "Iterable[IdField]", value: int, own: int) -> str | None:
    """Write what would become of fields: `CSV2 1 -> 0, CSV3 1 -> 0`; None if there are none."""
    return ", ".join(field.change(value, own) for field in fields) or None


def _not_in_place_of(own: int) -> str:
    return f"the destination does not take it in place of {own:#x}"


def _lost_level(register: int, value: int, own: int) -> str | None:
    """Tell what the guest would lose; a mitigation's level may be raised by a migration, never lowered."""
    levels = _LEVELS.get(register)
    if levels is None:
        return f"{value:#x} on the source, {own:#x} on the destination" if value > own else None
    here, there = value & 0xF, own & 0xF
    lost = here > there
    if register == _WORKAROUND_2:
        # KVM deals with two states only: there is nothing to do about SSBD, or the guest is told how.
        lost = here >= len(levels) or (here >= _AVAIL and there <= _UNKNOWN)
    if not lost:
        return None
    names = [levels[level] if level < len(levels) else str(level) for level in (here, there)]
    return f"the guest would lose a mitigation: {names[0]} on the source, {names[1]} on the destination"


def _free_cache_ids(host: "HostProfile") -> bool:
    """Whether KVM lets the VMM describe the caches: since Linux 6.3, which lists CCSIDRs that the host has not."""
    return host.values.keys() >= set(range(_FIRST_CCSIDR, _LAST_CCSIDR + 1))


def _takes_ccsidr(host: "HostProfile", register: int, value: int) -> bool:
    """`set_ccsidr`: lines no shorter than CTR_EL0 says, of instructions for odd indexes."""
    shift = 0 if register & 1 else 16
    shortest = (host.values.get(_CTR, 0) >> shift & 0xF) + 2
    return _free_cache_ids(host) and (value & 7) + 4 >= shortest


def _takes_clidr(host: "HostProfile", value: int) -> bool:
    """`set_clidr`: no level may ask for less cleaning than CTR_EL0.IDC says the host needs."""
    coherence, unification, inner = value >> 24 & 7, value >> 27 & 7, value >> 21 & 7
    needs_no_cleaning = not coherence or (not inner and not unification)
    host_needs_none = bool(host.values.get(_CTR, 0) >> 28 & 1)
    return _free_cache_ids(host) and not value & ~_CLIDR_BITS and (host_needs_none or not needs_no_cleaning)
