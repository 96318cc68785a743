"""The registers of the interrupt controllers that belong to the host.

Source: Arm GIC Architecture Specification (IHI 0069), ICC_CTLR_EL1 and GITS_IIDR; what KVM makes of them: Linux
`arch/arm64/kvm/vgic-sys-reg-v3.c` (`set_gic_ctlr`) and `arch/arm64/kvm/vgic/vgic-its.c`
(`vgic_mmio_uaccess_write_its_iidr`).
"""

from typing import Final

from formats.arm.sysreg import parse_register

ICC_CTLR_EL1: Final = parse_register("ICC_CTLR_EL1")
HOST_BITS: Final = 0xFF00
"""Those of ICC_CTLR_EL1 that belong to the host: PRIbits, IDbits, SEIS, A3V; the rest is the guest's."""

GITS_IIDR: Final = parse_register("GITS_IIDR")


def its_revision(iidr: int) -> int:
    """Return bits 15:12 of GITS_IIDR: the revision of the layout of an ITS's tables, when KVM emulates it."""
    return iidr >> 12 & 0xF
