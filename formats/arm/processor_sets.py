"""Sets of processors as people write them: `cortex-a57 r1p0..r1p3`, `altra`, `0x43:0x0af`, or one MIDR_EL1 value."""

import functools
import re
from typing import Final

import msgspec

from formats.arm.midr import ProcessorId, core_names, parse_midr_el1
from formats.tables import read_table

_OLDEST: Final = (0, 0)
_NEWEST: Final = (15, 15)
_ARCHITECTURE: Final = 0xF
"""MIDR_EL1 bits 19..16 of all arm64 processors: the ID registers tell what they have."""

_MIDR: Final = re.compile(r"0x[0-9a-f]{1,16}")
_REVISIONS: Final = re.compile(r"(?P<core>.*?)(?:\s+r(\d+)p(\d+)(?:\s*\.\.\s*r(\d+)p(\d+))?)?")
_NUMBERS: Final = re.compile(r"(0x[0-9a-f]+)\s*:\s*(0x[0-9a-f]+)")


class UnknownProcessorError(ValueError):
    """A text does not name processors; the message says why, and what looks like it."""


class Processors(msgspec.Struct, frozen=True):
    """One core in a range of its revisions.

    Attributes:
        implementer: 8 bits; 0x41 is Arm.
        part: 12 bits.
        first: Variant and revision, the n and m of rNpM, of the oldest.
        last: The same of the newest; both are in the range.
    """

    implementer: int
    part: int
    first: tuple[int, int] = _OLDEST
    last: tuple[int, int] = _NEWEST

    def __contains__(self, midr: int) -> bool:
        """Tell whether a MIDR_EL1 value is in the range."""
        processor = parse_midr_el1(midr)
        same_core = (processor.implementer, processor.part) == (self.implementer, self.part)
        return same_core and self.first <= (processor.variant, processor.revision) <= self.last

    @property
    def midr(self) -> int | None:
        """The MIDR_EL1 value of the one processor that it is; None where it is several."""
        if self.first != self.last:
            return None
        return self.implementer << 24 | self.first[0] << 20 | _ARCHITECTURE << 16 | self.part << 4 | self.first[1]

    def __str__(self) -> str:
        one = str(ProcessorId(self.implementer, self.first[0], self.part, self.first[1]))
        if self.first == self.last:
            return one
        core = one.rpartition(" ")[0]
        if (self.first, self.last) == (_OLDEST, _NEWEST):
            return f"{core}, any revision"
        return f"{one}..r{self.last[0]}p{self.last[1]}"


def parse_processors(text: str) -> Processors:
    """Read a set of processors.

    A core is a name as Linux and Arm have it, in any case, with the maker's before it if need be, or
    `implementer:part` in hexadecimal; `rNpM` or `rNpM..rNpM` after it says which revisions, nothing says all. The name
    of a machine or chip stands for its core, and for its revision where all of them have one. A single processor may be
    given by its MIDR_EL1 value.

    Raises:
        UnknownProcessorError: It is nothing of that.
    """
    wanted = " ".join(text.lower().split())
    if _MIDR.fullmatch(wanted):
        return _one(int(wanted, 16), text)
    match = _REVISIONS.fullmatch(wanted)
    assert match is not None  # the pattern takes any text
    machine = _machine(match["core"], text)
    _, *numbers = match.groups()
    if machine is not None and numbers[0] is None:
        return machine
    implementer, part = _core(match["core"], text) if machine is None else (machine.implementer, machine.part)
    if numbers[0] is None:
        return Processors(implementer, part)
    first = int(numbers[0]), int(numbers[1])
    last = first if numbers[2] is None else (int(numbers[2]), int(numbers[3]))
    if not _OLDEST <= first <= last <= _NEWEST or max(*first, *last) > 15:
        raise UnknownProcessorError(f"{text!r}: revisions go from r0p0 to r15p15, the older one first")
    return Processors(implementer, part, first, last)


def _one(midr: int, text: str) -> Processors:
    if not 0 < midr < 1 << 32:
        raise UnknownProcessorError(f"{text!r} is no MIDR_EL1 value: it has 32 bits, as 0x411fd070 has")
    processor = parse_midr_el1(midr)
    revision = processor.variant, processor.revision
    return Processors(processor.implementer, processor.part, revision, revision)


def _machine(name: str, text: str) -> Processors | None:
    """Return the core of a machine of that name; None where none is known.

    Raises:
        UnknownProcessorError: It has cores of several kinds.
    """
    cores = read_machines().get(name)
    if cores is None:
        return None
    if len(cores) > 1:
        raise UnknownProcessorError(
            f"{text!r} has {len(cores)} kinds of core, {' and '.join(cores)}: name the one that guests are pinned to"
        )
    return parse_processors(cores[0])


@functools.cache
def read_machines() -> dict[str, list[str]]:
    """Return the cores of known machines and chips, by their names in small letters."""
    return read_table("formats.arm", "machines.toml")


@functools.cache
def _cores_by_name() -> dict[str, tuple[int, int]]:
    """Return the implementer and part of every core, by its name in small letters, with its maker's and without."""
    return {name.lower(): key for key, (maker, core) in core_names().items() for name in (core, f"{maker} {core}")}


def _core(name: str, text: str) -> tuple[int, int]:
    if match := _NUMBERS.fullmatch(name):
        implementer, part = int(match[1], 16), int(match[2], 16)
        if implementer > 0xFF or part > 0xFFF:
            raise UnknownProcessorError(f"{text!r}: an implementer has 8 bits and a part 12, as in 0x41:0xd07")
        return implementer, part
    cores = _cores_by_name()
    if name in cores:
        return cores[name]
    import difflib  # for errors only

    close = difflib.get_close_matches(name, [*cores, *read_machines()], n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else "; write implementer:part, as in 0x41:0xd07"
    raise UnknownProcessorError(f"{text!r}: no core is known as {name!r}{hint}")
