"""Loading host profiles from their files."""

from pathlib import Path
from typing import Literal

import msgspec

from proxy.errors import ConfigError
from proxy.host import HostProfile
from proxy.settings_file import load_toml
from proxy.words import register_id, register_value


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A profile as it stands in its file; register names or ids are the keys, hexadecimal strings the values."""

    schema_version: Literal[1]
    registers: dict[str, str]
    description: str = ""
    kernel: str | None = None
    vcpu_features: tuple[str, ...] | None = None
    timer_frequency: int | None = None
    firmware: dict[str, str] = {}
    writable: dict[str, str] | None = None
    also_present: list[str] | None = None


def load_profile(path: Path) -> HostProfile:
    """Load a profile.

    Raises:
        ConfigError: The file is no profile; the message names the key.
    """
    file = load_toml(path, _File)
    values = _values(path, {"registers": file.registers, "firmware": file.firmware})
    others = None
    if file.also_present is not None:
        others = frozenset(register_id(name, f"{path}: also_present") for name in file.also_present)
    return HostProfile(
        description=file.description,
        values=values,
        others=others,
        kernel=file.kernel,
        vcpu_features=file.vcpu_features,
        timer_frequency=file.timer_frequency,
        writable=None if file.writable is None else _values(path, {"writable": file.writable}),
    )


def _values(path: Path, tables: dict[str, dict[str, str]]) -> dict[int, int]:
    values: dict[int, int] = {}
    for table, entries in tables.items():
        for name, text in entries.items():
            where = f"{path}: {table}.{name}"
            register = register_id(name, where)
            if register in values:
                raise ConfigError(f"{where}: the register is there twice")
            values[register] = register_value(text, where)
    return values
