"""The registers of a vCPU that starts on a host, as far as the host's profile tells them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.arm.gic import ICC_CTLR_EL1
from formats.arm.sysreg import parse_register

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile

_CNTFRQ_EL0: Final = parse_register("CNTFRQ_EL0")


@dataclass(frozen=True, slots=True)
class HostRegisters:
    """The registers of a vCPU that starts on a host: known where they belong to the host, not where to the guest."""

    profile: "HostProfile"
    vcpu: int = 0

    def get(self, register_id: int, /) -> int | None:
        """Return the host's value; None where it belongs to the guest."""
        interrupts = self.profile.interrupts
        if register_id == ICC_CTLR_EL1 and interrupts is not None:
            return interrupts.icc_ctlr
        if register_id == _CNTFRQ_EL0:
            return self.profile.timer_frequency
        return self.profile.values.get(register_id)

    def items(self) -> Iterator[tuple[int, int | None]]:
        """Yield (id, value) in ascending order of the ids."""
        for register in sorted(self.profile.values.keys() | (self.profile.others or frozenset())):
            yield register, self.get(register)

    def __contains__(self, register_id: int, /) -> bool:
        return not self.profile.lacks(register_id)
