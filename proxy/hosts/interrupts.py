"""A host's interrupt controllers, as far as its KVM refuses a guest for the sake of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.hosts.taken import TakenField


@dataclass(frozen=True, slots=True)
class HostInterrupts:
    """What a host's KVM was seen to have, and to take.

    Attributes:
        gic_versions: The versions of the GIC that guests can have.
        icc_ctlr: The bits of ICC_CTLR_EL1 that belong to the host; None without a GICv3.
        icc_ctlr_taken: What it takes in its fields beside that.
        its_revisions: The revisions in GITS_IIDR that its ITS takes; None where it has none.
    """

    gic_versions: tuple[int, ...]
    icc_ctlr: int | None = None
    icc_ctlr_taken: "tuple[TakenField, ...]" = ()
    its_revisions: tuple[int, ...] | None = None
