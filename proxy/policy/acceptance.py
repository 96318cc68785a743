"""What the operator lets a guest lose, and meet: features that the destination has less of, and errata."""

from dataclasses import dataclass
from typing import Final

from formats.arm.id_fields import fields_of
from formats.arm.sysreg import describe, parse_register
from proxy.errors import ConfigError
from proxy.settings.register_names import invariant_register, suggested

ANY = "any"
"""In place of a list: whatever it is."""
CNTFRQ_EL0: Final = parse_register("CNTFRQ_EL0")
FREQUENCY: Final = "Frequency"
"""The field of CNTFRQ_EL0; that it is another can be accepted as a loss is, though nothing can swap it."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What is accepted, by name; None for anything.

    Attributes:
        lost_features: Fields of ID registers, each with its register's id, that may be lower after a swap.
        errata: Errata, as `Arm 832075`, that a guest may meet though it has no workaround on.
    """

    lost_features: frozenset[tuple[int, str]] | None = frozenset()
    errata: frozenset[str] | None = frozenset()

    def loss(self, register: int, field: str) -> bool:
        """Whether a field of a register may be lower."""
        return self.lost_features is None or (register, field) in self.lost_features

    def erratum(self, name: str) -> bool:
        """Whether guests may meet an erratum."""
        return self.errata is None or name.casefold() in self.errata

    def __or__(self, other: "Acceptance") -> "Acceptance":
        return Acceptance(
            None if None in (self.lost_features, other.lost_features) else self.lost_features | other.lost_features,  # type: ignore[operator]
            None if None in (self.errata, other.errata) else self.errata | other.errata,  # type: ignore[operator]
        )


def parse_losses(texts: list[str], where: str) -> frozenset[tuple[int, str]] | None:
    """Read what may be lost: `ID_AA64DFR0_EL1.DebugVer`, or `any` alone.

    Raises:
        ConfigError: It is neither; `where` names the file and the key, or the option.
    """
    if texts == [ANY]:
        return None
    found = set()
    for text in texts:
        name, dot, field = text.partition(".")
        if not dot:
            raise ConfigError(f"{where}: {text!r} names no field; write it as ID_AA64DFR0_EL1.DebugVer")
        register = CNTFRQ_EL0 if name.upper() == "CNTFRQ_EL0" else invariant_register(name, where)
        names = [known.name for known in fields_of(register)]
        if field not in names:
            raise ConfigError(f"{where}: {describe(register).name} has no field {field!r}{suggested(field, names)}")
        found.add((register, field))
    return frozenset(found)


def parse_errata(texts: list[str], where: str) -> frozenset[str] | None:
    """Read which errata may be met: `Arm 832075`, or `any` alone.

    Raises:
        ConfigError: No such erratum is known; `where` names the file and the key, or the option.
    """
    if texts == [ANY]:
        return None
    if not texts:
        return frozenset()
    from formats.arm.errata import all_errata

    names = [str(erratum) for erratum in all_errata()]
    known = {name.casefold() for name in names}
    for text in texts:
        if text.casefold() not in known:
            raise ConfigError(f"{where}: no erratum {text!r} is known{suggested(text, names)}")
    return frozenset(text.casefold() for text in texts)
