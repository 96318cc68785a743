"""Registers that a guest does not miss; the table, with its reasons, stands in `harmless.toml`."""

import functools
from collections.abc import Callable

import msgspec

from formats.arm.sysreg import describe, parse_register
from formats.tables import read_table


class Harmless(msgspec.Struct, frozen=True):
    """When a register may be dropped.

    Attributes:
        zero: The bits that have to be clear.
        of: The id of the register that they stand in.
        reason: Why the guest does not miss it then.
    """

    zero: int
    of: int
    reason: str

    def holds(self, value_of: Callable[[int], int | None]) -> bool | None:
        """Tell whether the bits are clear, given the vCPU's values by id; None when the value is not known."""
        value = value_of(self.of)
        return None if value is None else not value & self.zero

    @property
    def condition(self) -> str:
        """What has to hold, for people."""
        return f"{describe(self.of).name} & {self.zero:#x} == 0"


@functools.cache
def harmless() -> dict[int, Harmless]:
    """Return the table, by the id of the register that may be dropped."""
    return {
        parse_register(name): Harmless(entry["zero"], parse_register(entry.get("of", name)), entry["reason"])
        for name, entry in read_table("proxy.judging", "harmless.toml").items()
    }
