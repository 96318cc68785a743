"""Judging a guest's interrupt controllers, for whose sake the destination's QEMU would abort.

KVM's rules for them are its own, and it is not asked again: what a probe was told holds for every guest.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from formats.arm.gic import GITS_IIDR, ICC_CTLR_EL1, its_revision
from proxy.hosts.taken import refused_parts
from proxy.judging.profile_acceptance import changes_of
from proxy.judging.register_judge import difference
from proxy.judging.verdict import Action, Registers, Verdict
from proxy.judging.vouching import with_losses

if TYPE_CHECKING:
    from proxy.hosts.interrupts import HostInterrupts
    from proxy.policy.policy import Policy


def refused_interrupts(host: "HostInterrupts", registers: Registers) -> dict[int, str]:
    """Tell what of a vCPU's interrupt controllers a host does not take, and why, by register id.

    Args:
        host: The host's.
        registers: The vCPU's registers.
    """
    refused = {}
    value, iidr = registers.get(ICC_CTLR_EL1), registers.get(GITS_IIDR)
    if host.icc_ctlr is not None and value is not None and value != host.icc_ctlr:
        fields = refused_parts(ICC_CTLR_EL1, value, host.icc_ctlr, {ICC_CTLR_EL1: host.icc_ctlr_taken})
        if why := changes_of(fields, value, host.icc_ctlr):
            refused[ICC_CTLR_EL1] = why
    if host.its_revisions is not None and iidr is not None and its_revision(iidr) not in host.its_revisions:
        known = ", ".join(map(str, host.its_revisions))
        refused[GITS_IIDR] = f"Revision {its_revision(iidr)}, and the destination's ITS takes {known or 'none'}"
    return refused


def verdicts_on_interrupts(policy: "Policy", registers: Registers, host: "HostInterrupts") -> Iterator[Verdict]:
    """Yield the verdicts on a vCPU's interrupt controllers, where they are not the host's own.

    Args:
        policy: What the operator vouches for.
        registers: The vCPU's registers.
        host: The destination's.
    """
    refused = refused_interrupts(host, registers)
    value = registers.get(ICC_CTLR_EL1)
    if host.icc_ctlr is not None and value is not None and value != host.icc_ctlr:
        why = refused.get(ICC_CTLR_EL1)
        yield with_losses(policy, difference(policy, registers.vcpu, ICC_CTLR_EL1, value, host.icc_ctlr, why))
    if GITS_IIDR in refused:
        iidr = registers.get(GITS_IIDR)
        yield Verdict(registers.vcpu, GITS_IIDR, Action.REFUSE, iidr, None, _NO_RULE, refused[GITS_IIDR])


_NO_RULE = "its tables lie in the guest's memory in that layout, and no rule can change that"
