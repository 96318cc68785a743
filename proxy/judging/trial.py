"""What a judge asks of a destination's own kernel."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile
    from proxy.hosts.started_qemu import StartedQemu


class Trial(ABC):
    """Something that can tell which registers the destination does not take; see `proxy.judging.kernel_trial`."""

    started: "StartedQemu | None" = None
    """The destination's QEMU; None where it was not looked at."""

    @abstractmethod
    def refused(
        self,
        registers: Iterable[tuple[int, int | None]],
        host: "HostProfile",
        repaired: frozenset[tuple[int, int | None]],
        /,
    ) -> dict[int, str]:
        """Tell which are refused, and why, by register id.

        Args:
            registers: Ids and values of one vCPU; None for a value that is not known.
            host: The destination, as vCPUs of the guest's kind find it.
            repaired: What was changed in the guest's registers, each with its new value.
        """

    def fresh(self) -> "Trial":
        """Return one for another migration; itself, unless it holds something of one."""
        return self

    def open(self, host: "HostProfile", address: tuple[str, int] | None, /) -> None:  # noqa: B027 - nothing to do is right for most
        """Make ready for vCPUs of every kind that a host has, and look at who listens at an address."""

    def close(self) -> None:  # noqa: B027
        """Give back what was taken."""
