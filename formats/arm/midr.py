"""The processor id: what MIDR_EL1 says, and the names of known cores.

Source: Arm Architecture Reference Manual (DDI 0487), MIDR_EL1: implementer 31..24, variant 23..20, architecture 19..16,
part number 15..4, revision 3..0.
"""

import functools
from dataclasses import dataclass

from formats.tables import read_table


@dataclass(frozen=True, slots=True)
class ProcessorId:
    """A MIDR_EL1 value taken apart.

    Attributes:
        implementer: 8 bits; 0x41 is Arm.
        variant: 4 bits, the n of rNpM.
        part: 12 bits.
        revision: 4 bits, the m of rNpM.
    """

    implementer: int
    variant: int
    part: int
    revision: int

    def __str__(self) -> str:
        maker, core = core_names().get((self.implementer, self.part), (None, None))
        if core is None:
            maker = f"implementer {self.implementer:#04x}"
            core = f"part {self.part:#05x}"
        return f"{maker} {core} r{self.variant}p{self.revision}"


def parse_midr_el1(value: int) -> ProcessorId:
    """Take a MIDR_EL1 value apart."""
    return ProcessorId(value >> 24 & 0xFF, value >> 20 & 0xF, value >> 4 & 0xFFF, value & 0xF)


@functools.cache
def core_names() -> dict[tuple[int, int], tuple[str, str]]:
    """Return the maker's and the core's name of the known cores, by implementer and part."""
    return {
        (int(implementer, 16), int(part, 16)): (entry["name"], core)
        for implementer, entry in read_table("formats.arm", "processors.toml").items()
        for part, core in entry["parts"].items()
    }
