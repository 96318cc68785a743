"""What a destination's KVM compares with its own in the sections of the interrupt controllers.

QEMU hands these values to KVM device by device when the guest is loaded, and aborts where KVM refuses one. They are
found by the vmdesc alone; without one, nothing is said of them.
Source: QEMU `hw/intc/arm_gicv3_kvm.c` (`kvm_arm_gicv3_put`: ICC_CTLR_EL1 of the non-secure bank) and
`hw/intc/arm_gicv3_its_kvm.c` (`kvm_arm_its_post_load`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from formats.arm.gic import GITS_IIDR, HOST_BITS, ICC_CTLR_EL1

if TYPE_CHECKING:
    from formats.vmstate.device_state import DeviceState
    from formats.vmstate.locators import DeviceSection
    from formats.vmstate.vmdesc import Layout

SECTION_OF: Final = {ICC_CTLR_EL1: "arm_gicv3", GITS_IIDR: "arm_gicv3_its"}
"""The sections that these registers stand in, by their ids."""

_NON_SECURE: Final = 1
"""The bank that KVM has; `GICV3_NS` in QEMU `include/hw/intc/arm_gicv3_common.h`."""
_BANK: Final = 8
_IIDR: Final = 4


@dataclass(frozen=True, slots=True)
class HeldValue:
    """A register in a device section, big endian, as all numbers of a vmstate.

    Attributes:
        position: Where it begins, in bytes from the start of the device state.
        size: Its bytes.
        mask: The bits that belong to the host; the others stay as they are.
        held: The device state.
    """

    position: int
    size: int
    mask: int
    held: bytearray = field(repr=False, compare=False)

    @property
    def value(self) -> int:
        """The bits that belong to the host."""
        return self._whole & self.mask

    def replace(self, value: int) -> None:
        """Write other bits in their place."""
        whole = self._whole & ~self.mask | value & self.mask
        self.held[self.position : self.position + self.size] = whole.to_bytes(self.size, "big")

    @property
    def _whole(self) -> int:
        return int.from_bytes(self.held[self.position : self.position + self.size], "big")


def interrupts_of(state: "DeviceState") -> dict[int, dict[int, HeldValue]]:
    """Find the registers of a GICv3 and its ITS; return them by vCPU and id, what all vCPUs share with vCPU 0."""
    found: dict[int, dict[int, HeldValue]] = {}
    for section in state.sections:
        if section.layout is None:
            continue
        if section.name == SECTION_OF[ICC_CTLR_EL1]:
            for vcpu, offset in enumerate(_interfaces(section.layout)):
                held = HeldValue(section.body + offset, _BANK, HOST_BITS, state.held)
                found.setdefault(vcpu, {})[ICC_CTLR_EL1] = held
        elif section.name == SECTION_OF[GITS_IIDR]:
            iidr = section.layout.field("iidr")
            if iidr is not None and iidr[1].length == _IIDR:
                held = HeldValue(section.body + iidr[0], _IIDR, (1 << 32) - 1, state.held)
                found.setdefault(0, {})[GITS_IIDR] = held
    return found


def unread_interrupts(state: "DeviceState") -> "list[DeviceSection]":
    """Return the sections of a GICv3 and its ITS whose registers cannot be found, as nothing describes them."""
    return [section for section in state.sections if section.layout is None and section.name in SECTION_OF.values()]


def _interfaces(layout: "Layout") -> Iterator[int]:
    """Yield where each vCPU's ICC_CTLR_EL1 is, in bytes from the start of the section's body."""
    position = 0
    for member in layout.fields:
        found = None if member.struct is None else member.struct.field("icc_ctlr_el1")
        if found is not None and found[1].size == _BANK and found[1].length > _NON_SECURE * _BANK:
            for index in range(1 if member.count is None else member.count):
                yield position + index * member.size + found[0] + _NON_SECURE * _BANK
        position += member.length
