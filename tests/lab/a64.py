"""A tiny AArch64 encoder: the few instructions that the lab's guests are made of.

Encodings: Arm Architecture Reference Manual (DDI 0487), chapter C6. Registers are plain numbers; 31 is the zero
register. Branches name labels; `Program.assemble` fills in the distances.
"""

from __future__ import annotations

from enum import Enum

ZERO = 31
"""The zero register (in the instructions used here 31 never means SP)."""

MIDR_EL1 = (3, 0, 0, 0, 0)
"""op0, op1, CRn, CRm, op2 of the processor id, for `Program.mrs`."""


class _Branch(Enum):
    """How a branch stores its distance: position and width of the immediate."""

    IMM26 = (0, 26)
    IMM19 = (5, 19)


class Program:
    """A flat sequence of instructions and data words, with labels."""

    def __init__(self) -> None:
        self._words: list[int] = []
        self._labels: dict[str, int] = {}
        self._branches: list[tuple[int, str, _Branch]] = []

    def label(self, name: str) -> None:
        """Name the next instruction."""
        if name in self._labels:
            raise ValueError(f"label {name!r} is defined twice")
        self._labels[name] = len(self._words)

    def assemble(self) -> bytes:
        """Resolve the branches and return the image: little-endian words."""
        words = list(self._words)
        for index, name, kind in self._branches:
            shift, width = kind.value
            distance = self._labels[name] - index
            if not -(1 << width - 1) <= distance < 1 << width - 1:
                raise ValueError(f"label {name!r} is out of reach")
            words[index] |= (distance & (1 << width) - 1) << shift
        return b"".join(word.to_bytes(4, "little") for word in words)

    # -- constants ---------------------------------------------------------------------------------------------------

    def mov(self, d: int, value: int) -> None:
        """Xd = value, any 64-bit number: one MOVZ and as many MOVK as it needs."""
        if not 0 <= value < 1 << 64:
            raise ValueError(f"not a 64-bit value: {value:#x}")
        self._emit(0xD2800000 | (value & 0xFFFF) << 5 | d)
        for part in 1, 2, 3:
            if chunk := value >> 16 * part & 0xFFFF:
                self._emit(0xF2800000 | part << 21 | chunk << 5 | d)

    # -- arithmetic --------------------------------------------------------------------------------------------------

    def add(self, d: int, n: int, imm: int) -> None:
        """Xd = Xn + imm; imm below 4096, or a multiple of 4096 below 2**24."""
        self._emit(0x91000000 | _imm12_shifted(imm) | n << 5 | d)

    def subs(self, d: int, n: int, imm: int) -> None:
        """Xd = Xn - imm, and set the flags; imm as in `add`."""
        self._emit(0xF1000000 | _imm12_shifted(imm) | n << 5 | d)

    def cmp(self, n: int, m: int) -> None:
        """Set the flags of Xn - Xm (SUBS XZR, Xn, Xm)."""
        self._emit(0xEB000000 | m << 16 | n << 5 | ZERO)

    # -- memory ------------------------------------------------------------------------------------------------------

    def ldr(self, t: int, n: int, offset: int = 0) -> None:
        """Xt = 64 bits at [Xn + offset]."""
        self._emit(0xF9400000 | _scaled(offset, 8) << 10 | n << 5 | t)

    def str_(self, t: int, n: int, offset: int = 0) -> None:
        """64 bits at [Xn + offset] = Xt."""
        self._emit(0xF9000000 | _scaled(offset, 8) << 10 | n << 5 | t)

    def ldr_w(self, t: int, n: int, offset: int = 0) -> None:
        """Wt = 32 bits at [Xn + offset]; the upper half of Xt becomes zero."""
        self._emit(0xB9400000 | _scaled(offset, 4) << 10 | n << 5 | t)

    def str_w(self, t: int, n: int, offset: int = 0) -> None:
        """32 bits at [Xn + offset] = Wt."""
        self._emit(0xB9000000 | _scaled(offset, 4) << 10 | n << 5 | t)

    # -- system ------------------------------------------------------------------------------------------------------

    def mrs(self, t: int, register: tuple[int, int, int, int, int]) -> None:
        """Xt = a system register, given as (op0, op1, CRn, CRm, op2)."""
        op0, op1, crn, crm, op2 = register
        self._emit(0xD5300000 | (op0 - 2) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | t)

    def wfi(self) -> None:
        """Sleep until an interrupt: with none enabled, for good."""
        self._emit(0xD503207F)

    # -- branches ----------------------------------------------------------------------------------------------------

    def b(self, label: str) -> None:
        """Go to label."""
        self._branch(0x14000000, label, _Branch.IMM26)

    def b_ne(self, label: str) -> None:
        """Go to label if the last comparison said "not equal"."""
        self._branch(0x54000001, label, _Branch.IMM19)

    def cbnz(self, t: int, label: str) -> None:
        """Go to label if Xt is not zero."""
        self._branch(0xB5000000 | t, label, _Branch.IMM19)

    def _branch(self, word: int, label: str, kind: _Branch) -> None:
        self._branches.append((len(self._words), label, kind))
        self._emit(word)

    def _emit(self, word: int) -> None:
        self._words.append(word)


def _imm12_shifted(imm: int) -> int:
    if 0 <= imm < 1 << 12:
        return imm << 10
    if imm & 0xFFF == 0 and 0 < imm < 1 << 24:
        return 1 << 22 | imm >> 12 << 10
    raise ValueError(f"not an add/sub immediate: {imm:#x}")


def _scaled(offset: int, size: int) -> int:
    if offset % size or not 0 <= offset // size < 1 << 12:
        raise ValueError(f"not an offset for {size}-byte accesses: {offset:#x}")
    return offset // size
