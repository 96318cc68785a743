"""Errata of processor cores, and which of them a guest meets anew where it is migrated to.

A guest's kernel chooses its workarounds when it boots, by the MIDR_EL1 of the processor that it then runs on; migration
does not make it choose again.

Source: Linux `arch/arm64/kernel/cpu_errata.c`, and what `errata.toml` names, where the errata stand.
"""

import enum
import functools
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from formats.arm.midr import core_names
from formats.arm.processor_sets import Processors, parse_processors
from formats.tables import read_table

_LONGEST_NUMBER: Final = 20


class Scope(enum.Enum):
    """Who must work around an erratum."""

    GUEST = "guest"
    """The guest's kernel; or its programs suffer from it."""
    HOST = "host"
    """Only the hypervisor, or a kernel that uses what KVM hides from guests."""


class Erratum(msgspec.Struct, frozen=True):
    """A defect of some processors, under one number.

    Attributes:
        number: As its vendor gave it; a word where the vendor gave none, such as the name of a class of attack.
        vendor: Whose number it is; empty for a class of attack.
        summary: What goes wrong, in one line.
        scope: Who must work around it.
        kconfig: The option of Linux, without CONFIG_; None where it has none.
        workaround: What Linux turns on where it finds such a processor, and for other errata alike; None where it does
            the same on all processors.
        processors: Those that have it. REVIDR_EL1, which can tell that one is fixed, is not looked at.
    """

    number: str
    vendor: str
    summary: str
    scope: Scope
    kconfig: str | None
    workaround: str | None
    processors: tuple[Processors, ...]

    def __str__(self) -> str:
        return f"{self.vendor} {self.number}".lstrip()

    def affects(self, midr: int) -> bool:
        """Tell whether the processor with this MIDR_EL1 has it."""
        return any(midr in processors for processors in self.processors)


# Bounded, for ids come from streams that nobody vouches for.
@functools.lru_cache(maxsize=4096)
def errata_of(midr: int) -> tuple[Erratum, ...]:
    """Give the errata of a processor: those of guests first, then by vendor and number; none if it is unknown."""
    return tuple(erratum for erratum in all_errata() if erratum.affects(midr))


def new_errata(source_midr: int, destination_midr: int) -> tuple[Erratum, ...]:
    """Give the errata that the destination's processor has and the source's has not, ordered as in `errata_of`.

    One defect can have another number in another core; it then counts as new. `unguarded_errata` tells these apart.
    """
    known = errata_of(source_midr)
    return tuple(erratum for erratum in errata_of(destination_midr) if erratum not in known)


def unguarded_errata(source_midr: int, destination_midr: int) -> tuple[Erratum, ...]:
    """Give those of `new_errata` which a Linux that booted on the source's processor does nothing about.

    These are the guest's, and no erratum of the source's processor turns on the same workaround. Whether the guest's
    kernel is new enough to have the others' workarounds, and built with them, is not known here.
    """
    guarded = {erratum.workaround for erratum in errata_of(source_midr)} | {None}
    return tuple(
        erratum
        for erratum in new_errata(source_midr, destination_midr)
        if erratum.scope is Scope.GUEST and erratum.workaround not in guarded
    )


@functools.cache
def all_errata() -> tuple[Erratum, ...]:
    """Give every erratum of the table, ordered as in `errata_of`."""
    return tuple(
        sorted(
            (found for entry in read_table("formats.arm", "errata.toml")["erratum"] for found in _parse(entry)),
            key=_order,
        )
    )


def _order(erratum: Erratum) -> tuple[bool, bool, str, str]:
    # Numbers have no leading zeros: the longer is the greater.
    number = erratum.number.rjust(_LONGEST_NUMBER) if erratum.number.isdecimal() else erratum.number
    return erratum.scope is Scope.HOST, not erratum.vendor, erratum.vendor, number


def _parse(entry: dict[str, Any]) -> Iterator[Erratum]:
    """Read an entry, which has one erratum for each of its numbers."""
    processors = {
        number: [parse_processors(text) for text in texts] for number, texts in entry.get("cores", {}).items()
    }
    for number, texts in entry.get("cores_but", {}).items():
        spared = [parse_processors(text) for text in texts]
        processors[number] = [core for key in core_names() if (core := Processors(*key)) not in spared]
    for number, affected in processors.items():
        yield Erratum(
            number=number,
            vendor=entry.get("vendor", ""),
            summary=entry["summary"],
            scope=Scope(entry["scope"]),
            kconfig=entry.get("kconfig"),
            workaround=entry.get("workaround"),
            processors=tuple(affected),
        )
