"""The policy: which processors may come, and what may change."""

import enum
from dataclasses import dataclass, field

from formats.sysreg import MIDR_EL1

NO_MIDR = "none"
"""How a whitelist names streams that hold no MIDR_EL1, as those of TCG guests."""


class Mode(enum.StrEnum):
    """How much is changed."""

    REPAIR = "repair"
    """Only registers that differ and that the policy lists."""
    BLIND = "blind"
    """Every invariant register takes the destination's value."""
    OBSERVE = "observe"
    """Nothing; what would be changed or refused is reported."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator vouches for.

    Attributes:
        whitelist: Where each processor id that may come was listed, by MIDR_EL1 value; None stands for streams
            without one.
        swap: Where each register that may take the destination's value was listed, by register id.
        mode: How much is changed.
        drop: Where each register that may be left out, if the destination lacks it, was listed, by register id.
        drop_harmless: Whether those that `proxy.harmless` knows may be left out, too.
    """

    whitelist: dict[int | None, str]
    swap: dict[int, str]
    mode: Mode = Mode.REPAIR
    drop: dict[int, str] = field(default_factory=dict)
    drop_harmless: bool = True


DEFAULT_SWAP = {MIDR_EL1: "default"}
"""What may change when nothing is said: the processor id, for ids that the whitelist has."""
