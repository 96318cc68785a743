"""The policy: which processors may come, and what may change."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from formats.sysreg import MIDR_EL1, describe
from proxy.errors import ConfigError
from proxy.settings_file import load_toml, register_id, register_value

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
    """

    whitelist: dict[int | None, str]
    swap: dict[int, str]
    mode: Mode = Mode.REPAIR


DEFAULT_SWAP = {MIDR_EL1: "default"}
"""What may change when nothing is said: the processor id, for ids that the whitelist has."""


class _Whitelist(msgspec.Struct, forbid_unknown_fields=True):
    midr: list[str] = []


class _Registers(msgspec.Struct, forbid_unknown_fields=True):
    swap: list[str] = msgspec.field(default_factory=lambda: [describe(MIDR_EL1).name])


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A policy as it stands in its file."""

    schema_version: Literal[1]
    mode: Mode = Mode.REPAIR
    whitelist: _Whitelist = msgspec.field(default_factory=_Whitelist)
    registers: _Registers = msgspec.field(default_factory=_Registers)


def load_policy(path: Path) -> Policy:
    """Load a policy.

    Raises:
        ConfigError: The file is no policy; the message names the key.
    """
    file = load_toml(path, _File)
    return Policy(
        whitelist={parse_midr(text, f"{path}: whitelist.midr"): f"{path}: whitelist" for text in file.whitelist.midr},
        swap={
            invariant_register(name, f"{path}: registers.swap"): f"{path}: registers.swap"
            for name in file.registers.swap
        },
        mode=file.mode,
    )


def parse_midr(text: str, where: str) -> int | None:
    """Return a processor id from a whitelist; None for the word that stands for streams without one.

    Raises:
        ConfigError: It is neither; `where` names the file and the key, or the option.
    """
    if text.strip().lower() == NO_MIDR:
        return None
    midr = register_value(text.strip(), where)
    if not 0 < midr < 1 << 32:
        raise ConfigError(f"{where}: {text!r} is no MIDR_EL1 value; write it as 0x411fd070, or {NO_MIDR!r}")
    return midr


def invariant_register(name: str, where: str) -> int:
    """Return the id of a register that may be listed for a swap.

    Raises:
        ConfigError: There is no such register, or it belongs to the guest or the firmware.
    """
    register = describe(register_id(name, where))
    if not register.invariant:
        raise ConfigError(
            f"{where}: {register.name} is of kind {register.kind.value}, not an invariant register, and never swapped"
        )
    return register.id
