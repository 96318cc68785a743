"""What is judged, one vCPU's registers, and what comes of it: a verdict on each that differs from the destination's."""

import enum
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from formats.arm.id_fields import IdField, differing
from formats.arm.sysreg import describe, format_id


class Registers(Protocol):
    """One vCPU's registers: those of a stream (`RegisterList`), or of one that starts on a host (`HostRegisters`)."""

    @property
    def vcpu(self) -> int:
        """The vCPU's index."""

    def get(self, register_id: int, /) -> int | None:
        """Return a register's value; None when there is none, or it is not known."""

    def items(self) -> Iterable[tuple[int, int | None]]:
        """Yield (id, value) in ascending order of the ids."""

    def __contains__(self, register_id: int, /) -> bool: ...


class Action(enum.Enum):
    """What becomes of a register."""

    ACCEPT = "accept"
    """It differs from the destination's own, which takes it as it is."""
    SWAP = "swap"
    """It takes the destination's value."""
    DROP = "drop"
    """It is left out, for the destination does not have it."""
    REFUSE = "refuse"
    """It ends the migration."""


class Verdict(NamedTuple):
    """What becomes of one register of one vCPU; registers that are equal on both sides have none.

    Attributes:
        vcpu: The vCPU's index.
        register: The register's id.
        action: What becomes of it.
        old: The source's value; None when the stream does not hold the register.
        new: The destination's value; None when it has none, or it is not known.
        rule: What allows a swap or drop, or why it is refused.
        why: Why the destination does not take the register as it is; empty when it does.
        advice: What to do about a refusal; empty when nothing can be done here.
        option: The option that would allow it, as `--allow-register CTR_EL0`; empty when none would.
        losses: The options that would accept what the guest loses or meets by it, one for each, where that is needed.
    """

    vcpu: int
    register: int
    action: Action
    old: int | None
    new: int | None
    rule: str
    why: str = ""
    advice: str = ""
    option: str = ""
    losses: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The register's name."""
        return describe(self.register).name

    @property
    def fields(self) -> tuple[IdField, ...]:
        """The fields in which source and destination differ; none for what is no ID register, or has no value."""
        if self.old is None or self.new is None or not describe(self.register).invariant:
            return ()
        return differing(self.register, self.old, self.new)


def verdict_as_dict(verdict: "Verdict") -> dict[str, Any]:
    """Return a verdict as it goes into JSON; ids and values are hexadecimal strings."""
    return {
        "vcpu": verdict.vcpu,
        "action": verdict.action.value,
        "register": verdict.name,
        "id": format_id(verdict.register),
        "from": None if verdict.old is None else f"{verdict.old:#x}",
        "to": None if verdict.new is None else f"{verdict.new:#x}",
        "rule": verdict.rule,
        "why": verdict.why,
        "fields": [
            {"name": field.name, "from": field.value(verdict.old or 0), "to": field.value(verdict.new or 0)}
            for field in verdict.fields
        ],
    }
