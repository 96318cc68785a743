"""The registers of a vCPU that starts on a host, as far as the host's profile tells them."""

from collections.abc import ItemsView
from functools import cached_property
from typing import TYPE_CHECKING, Final

from formats.arm.gic import ICC_CTLR_EL1
from formats.arm.sysreg import parse_register

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile

_CNTFRQ_EL0: Final = parse_register("CNTFRQ_EL0")


class HostRegisters:
    """The registers of a vCPU that starts on a host: known where they belong to the host, not where to the guest.

    Attributes:
        profile: The host's profile.
        vcpu: The vCPU's index.
    """

    def __init__(self, profile: "HostProfile", vcpu: int = 0) -> None:
        self.profile = profile
        self.vcpu = vcpu

    def get(self, register_id: int, /) -> int | None:
        """Return the host's value; None where it belongs to the guest."""
        interrupts = self.profile.interrupts
        if register_id == ICC_CTLR_EL1 and interrupts is not None:
            return interrupts.icc_ctlr
        if register_id == _CNTFRQ_EL0:
            return self.profile.timer_frequency
        return self.profile.values.get(register_id)

    def items(self) -> ItemsView[int, int | None]:
        """Return (id, value) in ascending order of the ids."""
        return self._listed.items()

    @cached_property
    def _listed(self) -> dict[int, int | None]:
        ids = sorted(self.profile.values.keys() | (self.profile.others or frozenset()))
        return {register: self.get(register) for register in ids}

    def __contains__(self, register_id: int, /) -> bool:
        return not self.profile.lacks(register_id)
