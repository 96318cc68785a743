"""The operator's rules: what may become of a register, as a whole or in one of its fields."""

import enum
from collections.abc import Iterable, Mapping

import msgspec


class RuleAction(enum.StrEnum):
    """What a rule says of a register, or of a field of it."""

    SWAP = "swap"
    """It may take the destination's value."""
    KEEP = "keep"
    """It keeps the source's value, in mode blind, too; where the destination does not take that, nothing goes."""
    DROP = "drop"
    """It may be left out where the destination does not have it."""
    REFUSE = "refuse"
    """It must be the same on both sides, though the destination might take it."""


class Rule(msgspec.Struct, frozen=True):
    """One rule.

    Attributes:
        where: Where it stands, for reports.
        action: What it says.
        field: The field that it speaks of; None for the whole register.
        reason: Why, in the operator's words.
    """

    where: str
    action: RuleAction
    field: str | None = None
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" if self.reason else self.where


class OverlapError(ValueError):
    """Two rules speak of the same register or field.

    Attributes:
        register: The register's id.
        field: The field; None for the whole register.
        first: The rule that was there.
        second: The rule that overlaps it.
    """

    def __init__(self, register: int, first: Rule, second: Rule) -> None:
        super().__init__(f"{second.where} overlaps {first.where}")
        self.register = register
        self.first = first
        self.second = second


class Rules(msgspec.Struct, frozen=True):
    """All the rules of a policy, by register id; a register has one for the whole, or one each for some fields."""

    by_register: Mapping[int, tuple[Rule, ...]]

    @classmethod
    def of(cls, rules: Iterable[tuple[int, Rule]]) -> "Rules":
        """Put rules together.

        Raises:
            OverlapError: Two speak of the same.
        """
        found: dict[int, tuple[Rule, ...]] = {}
        for register, rule in rules:
            others = found.get(register, ())
            for other in others:
                if other.field is None or rule.field is None or other.field == rule.field:
                    raise OverlapError(register, other, rule)
            found[register] = (*others, rule)
        return cls(found)

    def for_register(self, register: int) -> Rule | None:
        """Return the rule for the whole of a register."""
        return next((rule for rule in self.by_register.get(register, ()) if rule.field is None), None)

    def for_field(self, register: int, field: str) -> Rule | None:
        """Return the rule that holds for a field: its own, or that of the whole register."""
        return next((rule for rule in self.by_register.get(register, ()) if rule.field in (None, field)), None)
