"""What a vCPU was created with, told from its registers and its `cpu` section.

KVM lists a register only for a vCPU that can use it, so the list tells the features; ID fields agree with it. Seen on
Linux 6.1, 6.12 and 7.2 by creating vCPUs with and without each feature. (On 5.10 a vCPU without PMU_V3 lists and says
what one with it does.)

- PMU_V3: PMCR_EL0 and 73 more; without it ID_DFR0_EL1.PerfMon and ID_AA64DFR0_EL1.PMUVer are 0.
- SVE: ZCR_EL1; without it ID_AA64PFR0_EL1.SVE and ID_AA64ZFR0_EL1 are 0.
- PTRAUTH_ADDRESS, PTRAUTH_GENERIC: the keys APIA to APDB, and APGA; without them ID_AA64ISAR1_EL1.APA, API, GPA and
  GPI are 0. KVM wants both or none.
- EL1_32BIT: changes neither the list nor a value; only the processor state shows it (PSTATE.nRW above EL0).
- HAS_EL2 lists HCR_EL2, MTE lists GCR_EL1 (Linux `arch/arm64/kvm/sys_regs.c`, `el2_visibility`, `mte_visibility`).
  ID_AA64PFR0_EL1.EL2 does not tell: it is 1 on Linux 6.12 without HAS_EL2, too.

The lengths of SVE vectors (KVM_REG_ARM64_SVE_VLS) are not in a stream: QEMU does not send them, and ID_AA64PFR0_EL1.SVE
says only that there are vectors. A destination's profile bounds them.
"""

import enum
import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from formats.arm.id_fields import fields_of
from formats.arm.register_list import RegisterList
from formats.arm.sysreg import describe, parse_register


class VcpuFeature(enum.StrEnum):
    """A feature that a vCPU is created with, by KVM's name: KVM_ARM_VCPU_*, and KVM_CAP_ARM_MTE of its VM."""

    EL1_32BIT = "EL1_32BIT"
    HAS_EL2 = "HAS_EL2"
    MTE = "MTE"
    PMU_V3 = "PMU_V3"
    PTRAUTH_ADDRESS = "PTRAUTH_ADDRESS"
    PTRAUTH_GENERIC = "PTRAUTH_GENERIC"
    SVE = "SVE"


Kind: TypeAlias = frozenset[VcpuFeature]
"""The features that decide which registers a vCPU has, and with which values."""

MARKS: Final[dict[VcpuFeature, int]] = {
    VcpuFeature.PMU_V3: parse_register("PMCR_EL0"),
    VcpuFeature.SVE: parse_register("ZCR_EL1"),
    VcpuFeature.PTRAUTH_ADDRESS: parse_register("APIAKeyLo_EL1"),
    VcpuFeature.PTRAUTH_GENERIC: parse_register("APGAKeyLo_EL1"),
    VcpuFeature.HAS_EL2: parse_register("HCR_EL2"),
    VcpuFeature.MTE: parse_register("GCR_EL1"),
}
"""A register, by id, that KVM lists for a vCPU with the feature alone. Which are there is the vCPU's `Kind`."""

_FIELDS: Final = {
    VcpuFeature.PMU_V3: ("ID_AA64DFR0_EL1", ("PMUVer",)),
    VcpuFeature.SVE: ("ID_AA64PFR0_EL1", ("SVE",)),
    VcpuFeature.PTRAUTH_ADDRESS: ("ID_AA64ISAR1_EL1", ("APA", "API")),
    VcpuFeature.PTRAUTH_GENERIC: ("ID_AA64ISAR1_EL1", ("GPA", "GPI")),
    VcpuFeature.MTE: ("ID_AA64PFR1_EL1", ("MTE",)),
}
_SUBSECTIONS: Final = {VcpuFeature.SVE: "cpu/sve"}

_NRW: Final = 1 << 4
"""PSTATE.nRW: the processor is in AArch32 state."""
_MODE: Final = 0xF
"""The mode then; 0 is User, which a 64-bit kernel may run programs in, too."""


class _Registers(Protocol):
    """A vCPU's registers, as a stream or a host's profile has them."""

    def get(self, register_id: int, /) -> int | None: ...

    def __contains__(self, register_id: int, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class FeatureEvidence:
    """Whether a vCPU has a feature, and what tells it.

    Attributes:
        feature: The feature.
        present: Whether the vCPU has it; None when what is there does not tell.
        evidence: What tells it, for people.
    """

    feature: VcpuFeature
    present: bool | None
    evidence: str


def kind_of(registers: _Registers) -> Kind:
    """Tell of which kind a vCPU is. It is quick, for the guest stands while its vCPUs are judged."""
    if isinstance(registers, RegisterList):
        return _kind_of_ids(registers.ids)
    return frozenset(feature for feature, mark in MARKS.items() if mark in registers)


def features_of(
    registers: _Registers, subsections: Collection[str] = (), pstate: int | None = None
) -> list[FeatureEvidence]:
    """Tell a vCPU's features, each with its evidence, in the order of `VcpuFeature`.

    Args:
        registers: The vCPU's registers.
        subsections: The names of its `cpu` section's subsections.
        pstate: What the section's `cpsr` field says; None when there is no section.
    """
    found = []
    for feature in VcpuFeature:
        if feature is VcpuFeature.EL1_32BIT:
            found.append(_el1_32bit(pstate))
            continue
        mark = MARKS[feature]
        present = mark in registers
        words = [
            f"{describe(mark).name} is {'' if present else 'not '}among its registers",
            *_fields(registers, feature),
        ]
        if _SUBSECTIONS.get(feature) in subsections:
            words.append(f"there is a subsection {_SUBSECTIONS[feature]}")
        found.append(FeatureEvidence(feature, present, ", ".join(words)))
    return found


def named(kind: Iterable[VcpuFeature]) -> str:
    """Name a kind for people: `PMU_V3, SVE`; `none of the optional features` for the least."""
    return ", ".join(sorted(kind)) or "none of the optional features"


@functools.lru_cache(maxsize=8)
def _kind_of_ids(ids: tuple[int, ...]) -> Kind:
    """Do what `kind_of` does, for the one list of ids that the vCPUs of a guest have."""
    listed = frozenset(ids)
    return frozenset(feature for feature, mark in MARKS.items() if mark in listed)


def _fields(registers: _Registers, feature: VcpuFeature) -> Iterable[str]:
    register, names = _FIELDS.get(feature, ("MIDR_EL1", ()))
    value = registers.get(parse_register(register))
    if value is None:
        return
    for field in fields_of(parse_register(register)):
        if field.name in names:
            yield f"{register}.{field.name} is {field.value(value)}"


def _el1_32bit(pstate: int | None) -> FeatureEvidence:
    feature = VcpuFeature.EL1_32BIT
    if pstate is None:
        return FeatureEvidence(feature, None, "registers do not show it")
    if not pstate & _NRW:
        return FeatureEvidence(feature, False, f"the processor is in AArch64 state (PSTATE {pstate:#x})")
    if pstate & _MODE:
        return FeatureEvidence(feature, True, f"the processor is in AArch32 state above EL0 (PSTATE {pstate:#x})")
    return FeatureEvidence(feature, None, f"a 32-bit program runs (PSTATE {pstate:#x}), of a kernel of either width")
