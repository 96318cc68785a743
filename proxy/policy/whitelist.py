"""The whitelist: which processors are close enough to each other."""

from collections.abc import Sequence

import msgspec

from formats.arm.processor_sets import Processors


class Pairing(msgspec.Struct, frozen=True):
    """Processors whose guests may come, and the processors that they may come to.

    Attributes:
        where: Where it was listed, for reports.
        sources: The processors that guests may come from; None stands for streams without MIDR_EL1 (TCG).
        destinations: The processors that they may come to; None for any.
        reason: Why they are close enough, in the operator's words.
    """

    where: str
    sources: tuple[Processors | None, ...]
    destinations: tuple[Processors, ...] | None = None
    reason: str = ""

    def allows(self, source: int | None, destination: int | None) -> bool:
        """Tell whether a guest may go from one MIDR_EL1 to another; None where there is none."""
        if source is None:
            comes = None in self.sources
        else:
            comes = any(processors is not None and source in processors for processors in self.sources)
        if not comes or self.destinations is None:
            return comes
        return destination is not None and any(destination in processors for processors in self.destinations)

    def rule(self, source: int) -> str:
        """Say by what a processor id may come, for reports."""
        return f"{self.where} {source:#x}" + (f": {self.reason}" if self.reason else "")

    def __str__(self) -> str:
        sources = _listed(self.sources)
        return sources if self.destinations is None else f"{sources} to {_listed(self.destinations)}"


def _listed(processors: Sequence[Processors | None]) -> str:
    return " or ".join("none" if one is None else str(one) for one in processors)


def pairing_for(whitelist: Sequence[Pairing], source: int | None, destination: int | None) -> Pairing | None:
    """Return the first entry that allows it; None when none does."""
    return next((pairing for pairing in whitelist if pairing.allows(source, destination)), None)
