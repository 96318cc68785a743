"""The policy: which processors may come, what may change, and what a migration has to bring."""

import enum
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from formats.arm.sysreg import MIDR_EL1
from proxy.policy.acceptance import Acceptance
from proxy.policy.rules import Rule, RuleAction, Rules
from proxy.policy.whitelist import Pairing
from proxy.settings.origin import Origin


class Mode(enum.StrEnum):
    """How much is changed."""

    REPAIR = "repair"
    """Only registers that the destination would refuse and that the policy lists."""
    BLIND = "blind"
    """Every invariant register takes the destination's value."""
    OBSERVE = "observe"
    """Nothing; what would be changed or refused is reported."""


NO_RETURN_PATH: Final = (
    "the source opened no return path, so it would give up its guest without knowing that the destination has it; "
    "turn the migration capability return-path on (QMP: migrate-set-capabilities), or pass --allow-no-return-path"
)
"""What is said of a stream that lacks one."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a migration has to bring.

    Attributes:
        return_path: Whether a live source must open a return path.
        vmdesc: Whether the device sections must be described by a vmdesc.
        device_state_limit: Bytes of device state at most; None for the default.
        machines: Patterns of machine types that may come, such as `virt-*`; none for any.
    """

    return_path: bool = True
    vmdesc: bool = False
    device_state_limit: int | None = None
    machines: tuple[str, ...] = ()

    def takes_machine(self, machine: str) -> bool:
        """Tell whether guests of a machine type may come."""
        return not self.machines or any(fnmatchcase(machine, pattern) for pattern in self.machines)


DEFAULT_RULES: Final = Rules({MIDR_EL1: (Rule("default", RuleAction.SWAP),)})
"""What may change when nothing is said: the processor id, for processors that the whitelist has."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator vouches for.

    Attributes:
        whitelist: Which processors' guests may come to which.
        rules: What may become of which register.
        mode: How much is changed.
        drop_harmless: Whether registers that the destination lacks and `proxy.judging.harmless` knows may be left out.
        require: What a migration has to bring.
        accept: What a guest may lose, and meet.
        origin: The file that it was read from; None where there is none.
    """

    whitelist: tuple[Pairing, ...] = ()
    rules: Rules = DEFAULT_RULES
    mode: Mode = Mode.REPAIR
    drop_harmless: bool = True
    require: Requirements = field(default_factory=Requirements)
    accept: Acceptance = field(default_factory=Acceptance)
    origin: Origin | None = field(default=None, compare=False)
