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
        why: what there is to say of it where it is missed.
    """

    what: str
    measured: float
    bound: float
    unit: str = "x"
    at_least: bool = False
    why: str = ""

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


SHARED = (
    "Both QEMUs and the proxy share two processors, which the migration alone keeps busy: what any proxy uses of them "
    "is missing to QEMU, and rounds of the same kind differ by a tenth or more."
)
THREADS = (
    "Two threads carry the channels here, one for each processor. A single one uses a quarter less processor time, and "
    "with four channels the migrations take a tenth longer."
)
LOOKING = (
    "What is parsed has to be copied once, out of the kernel, and no other way reads it for less (see the ways to "
    "carry one connection): that alone costs as much as splicing does, which copies nothing."
)
TLS = (
    "Python's OpenSSL reads and writes one record of 16 KiB in a call, with the interpreter between. Kernel TLS is "
    "left off: OpenSSL does not renew keys with it (its issue 16307), and a renewal would end the migration."
)
IMPORTS = "Most of it are the imports of click and msgspec."
SWITCHOVER = (
    "Every vCPU is read, judged and written while its guest stands, in Python; it hangs on how fast the machine is."
)
POSTCOPY = "A request and its page each wake the proxy, which Python takes longer for than a program in C."
KVM = (
    "What is not the host's own is written into a vCPU of its KVM while the guest stands, one after the other. In an "
    "emulated host a system call takes longer, next to Python, than on a real one; the scale leaves that out."
)
READ_AGAIN = (
    "What the kernel has copied is mapped, to be judged; the interpreter's start and the steps between come on top."
)
