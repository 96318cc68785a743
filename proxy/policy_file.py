"""Loading policies from their files."""

from pathlib import Path
from typing import Literal

import msgspec

from formats.sysreg import MIDR_EL1, describe
from proxy.policy import Mode, Policy
from proxy.settings_file import load_toml
from proxy.words import droppable_register, invariant_register, parse_midr


class _Whitelist(msgspec.Struct, forbid_unknown_fields=True):
    midr: list[str] = []


class _Registers(msgspec.Struct, forbid_unknown_fields=True):
    swap: list[str] = msgspec.field(default_factory=lambda: [describe(MIDR_EL1).name])
    drop: list[str] = []
    drop_harmless: bool = True


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
    settings = load_toml(path, _File)
    file = settings.value
    return Policy(
        whitelist={
            parse_midr(text, settings.where("whitelist", "midr")): settings.where("whitelist", "midr")
            for text in file.whitelist.midr
        },
        swap={
            invariant_register(name, settings.where("registers", "swap")): settings.where("registers", "swap")
            for name in file.registers.swap
        },
        mode=file.mode,
        drop={
            droppable_register(name, settings.where("registers", "drop")): settings.where("registers", "drop")
            for name in file.registers.drop
        },
        drop_harmless=file.registers.drop_harmless,
    )
