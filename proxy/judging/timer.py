"""Judging the generic timer's frequency, which a guest takes at boot, and no register of a stream can mend.

A KVM guest reads the processor's own CNTFRQ_EL0, and its stream does not say what that was. It is known where the
source's profile is: in a check of a profile, and with `run --source`.
"""

from typing import TYPE_CHECKING

from formats.arm.sysreg import describe
from proxy.judging.verdict import Action, Registers, Verdict
from proxy.policy.acceptance import CNTFRQ_EL0, FREQUENCY
from proxy.policy.policy import Mode, Policy

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile


def verdict_on_timer(policy: Policy, registers: Registers, host: "HostProfile") -> Verdict | None:
    """Refuse a guest whose clock would be wrong, unless the policy names that; None where nothing differs, or is known.

    Args:
        policy: What the operator vouches for.
        registers: The vCPU's registers.
        host: The destination.
    """
    new = host.timer_frequency
    old = None if new is None else registers.get(CNTFRQ_EL0)
    if old is None or new is None or old == new:
        return None
    verdict = Verdict(registers.vcpu, CNTFRQ_EL0, Action.ACCEPT, old, new, "the policy accepts that")
    if policy.mode is Mode.BLIND or policy.accept.loss(CNTFRQ_EL0, FREQUENCY):
        return verdict
    option = f"--allow-loss {describe(CNTFRQ_EL0).name}.{FREQUENCY}"
    return verdict._replace(
        action=Action.REFUSE,
        rule=f"the timer runs at {old} Hz on the source and {new} Hz on the destination; the guest took the frequency "
        "at boot, and its clock would be wrong",
        advice=f"if it can live with that, name it: {option}, or accept.lost_features in the policy",
        losses=(option,),
    )
