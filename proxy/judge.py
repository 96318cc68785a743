"""Judging: policy, destination and the source's registers in, one verdict per register out."""

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.sysreg import MIDR_EL1, describe
from proxy.policy import NO_MIDR, Mode, Policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.arm_cpu import RegisterList
    from proxy.host import HostProfile


class Action(enum.Enum):
    """What becomes of a register."""

    SWAP = "swap"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one register of one vCPU; registers that pass as they are have none.

    Attributes:
        vcpu: The vCPU's index.
        register: The register's id.
        action: Whether it is swapped, or the migration refused.
        old: The source's value; None when the stream does not hold the register.
        new: The destination's value; None when it has none, or it is not known.
        rule: What allows the swap, or why it is refused and what would allow it.
    """

    vcpu: int
    register: int
    action: Action
    old: int | None
    new: int | None
    rule: str

    @property
    def name(self) -> str:
        """The register's name."""
        return describe(self.register).name


@dataclass(frozen=True, slots=True)
class Judge:
    """Knows the destination and the policy.

    Attributes:
        policy: What the operator vouches for.
        host: The destination; None when nothing is known of it, which only observing may be content with.
    """

    policy: Policy
    host: "HostProfile | None"

    def judge(self, registers: "RegisterList") -> "Iterator[Verdict]":
        """Yield the verdicts on one vCPU, refusals and swaps, in the order of the register ids."""
        if self.host is None:
            return
        refusal = self._processor(registers, self.host)
        if refusal is not None:
            yield refusal
        for register, value in registers.items():
            if self.host.lacks(register):
                yield Verdict(
                    registers.vcpu,
                    register,
                    Action.REFUSE,
                    value,
                    None,
                    "the destination has no such register, and its QEMU would not load the list; use a source kernel "
                    "or vCPU features with the same registers",
                )
                continue
            wanted = self.host.values.get(register)
            if wanted is None or wanted == value or not describe(register).invariant:
                continue
            if register == MIDR_EL1 and refusal is not None:
                continue
            yield self._difference(registers.vcpu, register, value, wanted)

    def _processor(self, registers: "RegisterList", host: "HostProfile") -> Verdict | None:
        """Refuse a source processor that is neither the destination's own nor whitelisted."""
        midr = registers.get(MIDR_EL1)
        if midr == host.midr or midr in self.policy.whitelist:
            return None
        what = "the stream holds no processor id (a TCG guest)" if midr is None else f"processor id {midr:#x}"
        listed = ", ".join(NO_MIDR if known is None else f"{known:#x}" for known in self.policy.whitelist) or "nothing"
        word = NO_MIDR if midr is None else f"{midr:#x}"
        return Verdict(
            registers.vcpu,
            MIDR_EL1,
            Action.REFUSE,
            midr,
            host.midr,
            f"{what}, and the whitelist has {listed}; if that processor is close enough to the destination's, add it: "
            f'--allow-midr {word}, or whitelist.midr = ["{word}"] in the policy',
        )

    def _difference(self, vcpu: int, register: int, old: int, new: int) -> Verdict:
        if self.policy.mode is Mode.BLIND:
            return Verdict(vcpu, register, Action.SWAP, old, new, "mode blind")
        listed = self.policy.swap.get(register)
        if listed is None:
            name = describe(register).name
            return Verdict(
                vcpu,
                register,
                Action.REFUSE,
                old,
                new,
                f"{old:#x} on the source and {new:#x} on the destination, and the policy does not list it; if the "
                f"guest can do with that, list it: --allow-register {name}, or registers.swap in the policy",
            )
        if register == MIDR_EL1 and old in self.policy.whitelist:
            return Verdict(vcpu, register, Action.SWAP, old, new, f"{self.policy.whitelist[old]} {old:#x}")
        return Verdict(vcpu, register, Action.SWAP, old, new, listed)
