"""Known faults of Linux' KVM on arm64 that a migrated guest meets, by the kernel's version: `kernel_faults.toml`."""

import enum
import functools
import re
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from formats.arm.sysreg import MIDR_EL1, parse_register
from formats.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_VERSION: Final = re.compile(r"(?:Linux )?(\d+)\.(\d+)")
Version = tuple[int, int]


class Side(enum.Enum):
    """Whose kernel has a fault."""

    SOURCE = "source"
    DESTINATION = "destination"


class Values(Protocol):
    """The registers of a vCPU, by id."""

    def get(self, register_id: int, /) -> int | None:
        """Return a value; None where the register is not there, or its value is not known."""

    def __contains__(self, register_id: int, /) -> bool:
        """Tell whether a register is there."""


class KernelFault(msgspec.Struct, frozen=True):
    """A fault.

    Attributes:
        name: What it is called here.
        side: Whose kernel has it.
        since: The first version with it; None for all before `until`.
        until: The first version without it; None where there is none yet.
        what: What it does to a guest, in one line.
        source: Where that is written.
        differs: Registers of which one keeps another value than the destination's own; none: it does not matter.
        bits: Bits by register, of which one is set; none: it does not matter.
        lists: A register that the guest has; None: it does not matter.
        another_core: Whether it takes another core on the other side.
    """

    name: str
    side: Side
    since: Version | None
    until: Version | None
    what: str
    source: str
    differs: tuple[int, ...]
    bits: "Mapping[int, int]"
    lists: int | None
    another_core: bool

    def is_in(self, version: Version) -> bool:
        """Tell whether a version has it."""
        return (self.since is None or version >= self.since) and (self.until is None or version < self.until)

    def meets(self, guest: Values, kept: "Collection[int]", midr: int | None) -> bool:
        """Tell whether a guest meets it.

        Args:
            guest: The registers of one of its vCPUs.
            kept: Registers that go over as they are, though the destination's own values are others.
            midr: The destination's MIDR_EL1.
        """
        if self.another_core and _core(guest.get(MIDR_EL1)) == _core(midr):
            return False
        if self.lists is not None and self.lists not in guest:
            return False
        if self.bits and not any((guest.get(register) or 0) & bits for register, bits in self.bits.items()):
            return False
        return not self.differs or any(register in kept for register in self.differs)


def _core(midr: int | None) -> int | None:
    """Return what tells a core from another: implementer and part, not the revision."""
    return None if midr is None else midr & 0xFF00_FFF0


def parse_version(kernel: str | None) -> Version | None:
    """Return the version of a kernel, as `uname -sr` or `uname -r` has it; None where it is not known."""
    match = _VERSION.match(kernel or "")
    return None if match is None else (int(match[1]), int(match[2]))


def kernel_faults(kernel: str | None, side: Side) -> tuple[KernelFault, ...]:
    """Return the faults of a kernel on a side, in the table's order; none for a kernel that is not known."""
    version = parse_version(kernel)
    return () if version is None else tuple(one for one in _all() if one.side is side and one.is_in(version))


@functools.cache
def _all() -> tuple[KernelFault, ...]:
    return tuple(
        KernelFault(
            name=name,
            side=Side(entry["side"]),
            since=parse_version(entry.get("since")),
            until=parse_version(entry.get("until")),
            what=entry["what"],
            source=entry["source"],
            differs=tuple(parse_register(register) for register in entry.get("differs", ())),
            bits={parse_register(register): bits for register, bits in entry.get("bits", {}).items()},
            lists=parse_register(entry["lists"]) if "lists" in entry else None,
            another_core=entry.get("another_core", False),
        )
        for name, entry in read_table("formats.arm", "kernel_faults.toml").items()
    )
