"""Asking the destination's own kernel: registers are tried on a scratch vCPU, as its QEMU would write them."""

import errno
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.hosts.kvm import Feature, scratch_vcpu
from proxy.judging.profile_acceptance import NO_SUCH_REGISTER


@dataclass(frozen=True, slots=True)
class KernelTrial:
    """Tells which registers this host's KVM does not take. No guest is touched.

    Attributes:
        features: What the destination's vCPUs have; None for what QEMU's `-cpu host` gives them.
    """

    features: frozenset[Feature] | None = None

    def refused(self, registers: Iterable[tuple[int, int | None]]) -> dict[int, str]:
        """Tell which registers are refused, and why, by register id.

        QEMU refuses a list that holds a register which KVM does not list (`cpu_post_load`), and otherwise writes it
        in its order, to the end (`write_list_to_kvmstate`).

        Args:
            registers: Ids and values of one vCPU; None for a value that is not known, which is not tried.

        Raises:
            KvmError: There is no arm64 KVM here, or it does not have a feature.
        """
        with scratch_vcpu(self.features) as vcpu:
            own = set(vcpu.registers())
            refused = {}
            for register, value in registers:
                if register not in own:
                    refused[register] = NO_SUCH_REGISTER
                elif value is not None and (code := vcpu.set(register, value)):
                    refused[register] = f"this host's KVM answers {errno.errorcode.get(code, code)}"
            return refused
