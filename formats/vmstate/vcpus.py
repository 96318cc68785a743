"""The arm64 vCPUs in a device state, whose sections were located."""

from typing import TYPE_CHECKING

from formats.arm.vcpu_features import FeatureEvidence, features_of
from formats.vmstate import cpu_section
from formats.vmstate.fields import decode_section
from formats.vmstate.interrupts import interrupts_of

if TYPE_CHECKING:
    from formats.arm.register_list import RegisterList
    from formats.vmstate.device_state import DeviceState


def open_vcpus(state: "DeviceState") -> "list[RegisterList]":
    """Open the registers of every arm64 `cpu` section; other architectures' are passed by.

    The lists are views of `state.held`: what is set in them is changed there. A vCPU's interface to the interrupt
    controller is with it where it could be found (`formats.vmstate.interrupts`); what they share is with the first.

    Raises:
        UnknownCpuVersionError: An arm64 `cpu` section of a version or layout that is not known.
        MalformedStreamError: One whose register list is broken.
    """
    vcpus = [
        cpu_section.open_registers(
            state.held,
            section.body,
            section.body_end,
            version=section.version_id,
            vcpu=section.instance_id,
            layout=section.layout,
            offset=state.offset + section.body,
        )
        for section in state.sections
        if section.name == cpu_section.IDSTR
        and cpu_section.is_arm64(state.held, section.body, section.body_end, section.layout, section.version_id)
    ]
    if vcpus:
        interrupts = interrupts_of(state)
        for registers in vcpus:
            if registers.vcpu in interrupts:
                registers.elsewhere = interrupts[registers.vcpu]
    return vcpus


def evidence_of(state: "DeviceState", registers: "RegisterList") -> list[FeatureEvidence]:
    """Tell the features of one of a device state's vCPUs, each with what tells it: registers, subsections, PSTATE."""
    section = next(one for one in state.sections if one.name == cpu_section.IDSTR and one.instance_id == registers.vcpu)
    fields = list(decode_section(state.held, section))
    # Of an arm64 vCPU in AArch64 state, QEMU puts PSTATE there (`target/arm/machine.c`, `put_cpsr`).
    cpsr = next((field.value for field in fields if field.path[-1] == "cpsr"), None)
    pstate = int.from_bytes(cpsr, "big") if isinstance(cpsr, bytes) else cpsr
    subsections = [field.path[-1] for field in fields if field.type == "subsection"]
    return features_of(registers, subsections, pstate if isinstance(pstate, int) else None)
