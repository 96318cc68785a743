"""What the proxy wants to be, as numbers, and whether it was in a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """A measured figure against its bound.

    Attributes:
        what: what is compared, and with what.
        measured: the figure.
        bound: what it may be at most, or at least.
        unit: what stands after both.
        at_least: whether more is better.
    """

    what: str
    measured: float
    bound: float
    unit: str = "x"
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure keeps the bound."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def row(self) -> list[str]:
        """The cells of its row in the table."""
        sign = "≥" if self.at_least else "≤"
        unit = self.unit if self.unit == "x" else f" {self.unit}"
        return [
            self.what,
            f"{self.measured:.2f}{unit}",
            f"{sign} {self.bound:.2f}{unit}",
            "yes" if self.met else "**no**",
        ]
