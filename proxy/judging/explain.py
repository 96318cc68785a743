"""What verdicts mean for a guest and for who runs it: fields, what the guest reads, features, errata."""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from formats.arm.errata import Erratum, new_errata, unguarded_errata
from formats.arm.id_fields import IdField
from formats.arm.kernel_faults import KernelFault, Side, kernel_faults
from formats.arm.psci import PSCI_VERSION, lost_calls
from formats.arm.sysreg import MIDR_EL1
from proxy.judging.verdict import Action, Registers, Verdict
from proxy.judging.vouching import lost_fields

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile


def what_the_guest_sees(verdict: Verdict) -> str | None:
    """Say what a swap means for the guest; None for what is not swapped.

    KVM gives the guest the processor's own MIDR_EL1 (VPIDR_EL2), whatever the stream said; reads of the other ID
    registers trap, and give what the stream said (Linux `arch/arm64/kvm/sys_regs.c`, HCR_EL2.TID1 to TID3). A Linux
    guest stores MIDR_EL1 for its programs when a processor comes online (`arch/arm64/kernel/cpuinfo.c`,
    `__cpuinfo_store_cpu`), and reads it anew where one uses MRS (`arch/arm64/kernel/cpufeature.c`, `emulate_id_reg`).
    """
    if verdict.action is not Action.SWAP:
        return None
    if verdict.register == MIDR_EL1:
        return (
            "the swap is not what the guest sees: it reads the processor's own value on either host. What looks after "
            "the migration finds the destination's: vCPUs that come online, a kernel started by kexec, programs that "
            "read MIDR_EL1. /proc/cpuinfo and /sys/devices/system/cpu/*/regs keep what each vCPU found when it came "
            "online, and running kernels and programs (JITs, too) the code that they chose by it"
        )
    texts = [
        f"{field.name} {_number(field, verdict.new)} instead of {_number(field, verdict.old)}"
        for field in verdict.fields
    ]
    if texts:
        return f"the guest will read {', '.join(texts)}"
    if verdict.old is None or verdict.new is None:
        return None
    calls = lost_calls(verdict.old, verdict.new) if verdict.register == PSCI_VERSION else []
    gone = f"; it was told of {' and '.join(calls)}, which is gone" if calls else ""
    return f"the guest will find {verdict.new:#x} in place of {verdict.old:#x}{gone}"


def lost_features(verdicts: Iterable[Verdict]) -> list[str]:
    """Name the features of which the destination has less than the guest was told: `ID_AA64PFR0_EL1.CSV2 1 -> 0`."""
    lost: dict[str, None] = {}
    for verdict in verdicts:
        if verdict.old is None or verdict.new is None or verdict.action is Action.ACCEPT:
            continue
        for field in lost_fields(verdict):
            lost[f"{verdict.name}.{field.change(verdict.old, verdict.new)}"] = None
    return list(lost)


def met_errata(verdicts: Iterable[Verdict]) -> list[str]:
    """Name the errata that a guest meets by a swap of its processor's id, and has no workaround on for."""
    met = {
        str(erratum): None
        for verdict in verdicts
        if verdict.register == MIDR_EL1 and verdict.old is not None and verdict.new is not None
        for erratum in unguarded_errata(verdict.old, verdict.new)
    }
    return list(met)


class Errata(msgspec.Struct, frozen=True):
    """How the errata of two processors differ.

    Attributes:
        new: Those that only the destination has.
        gone: Those that only the source has.
        unguarded: Those of `new` against which a guest that started on the source has no workaround on.
    """

    new: tuple[Erratum, ...] = ()
    gone: tuple[Erratum, ...] = ()
    unguarded: tuple[Erratum, ...] = ()


def compare_errata(source: int | None, destination: int | None) -> Errata:
    """Compare the errata of two processors, given by MIDR_EL1; nothing is known where one is not given."""
    if source is None or destination is None or source == destination:
        return Errata()
    return Errata(
        new_errata(source, destination), new_errata(destination, source), unguarded_errata(source, destination)
    )


def host_differences(source: "HostProfile", destination: "HostProfile") -> list[str]:
    """Say in what two hosts differ beside their registers: vCPU features, and what is dangerous."""
    differences = []
    if source.vcpu_features is not None and destination.vcpu_features is not None:
        only = sorted(set(source.vcpu_features) - set(destination.vcpu_features))
        if only:
            differences.append(f"vCPU features that the destination's vCPUs lack: {', '.join(only)}")
        only = sorted(set(destination.vcpu_features) - set(source.vcpu_features))
        if only:
            differences.append(f"vCPU features that only the destination's vCPUs have: {', '.join(only)}")
    return differences + [f"DANGER: {danger}" for danger in dangers(source, destination)]


def dangers(source: "HostProfile", destination: "HostProfile") -> list[str]:
    """Say what a guest of one host would suffer on another though every register is taken: SVE vectors, the timer."""
    found = []
    if source.sve_vector_lengths is not None and destination.sve_vector_lengths is not None:
        missing = sorted(set(source.sve_vector_lengths) - set(destination.sve_vector_lengths))
        if missing:
            found.append(
                f"the destination has no SVE vectors of {', '.join(map(str, missing))} bytes; a guest that uses them "
                "loses what they hold"
            )
    here, there = source.timer_frequency, destination.timer_frequency
    if here is not None and there is not None and here != there:
        found.append(
            f"the timer runs at {here} Hz on the source and {there} Hz on the destination; the guest took the "
            "frequency at boot, and its clock will be wrong. No register of the stream can mend that"
        )
    return found


def met_kernel_faults(
    vcpus: "Sequence[Registers]", kept: "Collection[int]", kernel: str | None, destination: "HostProfile"
) -> list[KernelFault]:
    """Return the known faults of both hosts' kernels that a guest meets, the source's first.

    Args:
        vcpus: The guest's.
        kept: Registers that go over as they are, though the destination's own values are others.
        kernel: The source's kernel; None where it is not known, as it is not from a stream.
        destination: The destination, of whose kernel a learned profile may know nothing either.
    """
    faults = (*kernel_faults(kernel, Side.SOURCE), *kernel_faults(destination.kernel, Side.DESTINATION))
    return [fault for fault in faults if any(fault.meets(registers, kept, destination.midr) for registers in vcpus)]


def _number(field: IdField, value: int | None) -> str:
    assert value is not None
    number = field.value(value)
    return f"{number:#x}" if field.width > 4 else str(number)
