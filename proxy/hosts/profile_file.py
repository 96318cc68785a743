"""Loading host profiles from their files."""

from pathlib import Path
from typing import Literal

import msgspec

from formats.arm.sysreg import describe
from proxy.errors import ConfigError
from proxy.hosts.profile import HostProfile
from proxy.settings.register_names import register_id, register_value
from proxy.settings.toml_file import Settings, load_toml


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A profile as it stands in its file; register names or ids are the keys, hexadecimal strings the values."""

    schema_version: Literal[1]
    registers: dict[str, str]
    description: str = ""
    kernel: str | None = None
    vcpu_features: tuple[str, ...] | None = None
    sve_vector_lengths: tuple[int, ...] | None = None
    timer_frequency: int | None = None
    firmware: dict[str, str] = {}
    writable: dict[str, str] | None = None
    also_present: list[str] | None = None


def load_profile(path: Path) -> HostProfile:
    """Load a profile.

    Raises:
        ConfigError: The file is no profile; the message names the key.
    """
    settings = load_toml(path, _File)
    file = settings.value
    values = _values(settings, "registers", file.registers)
    for register, value in _values(settings, "firmware", file.firmware).items():
        if register in values:
            raise ConfigError(f"{settings.where('firmware')}: {describe(register).name} is among the registers, too")
        values[register] = value
    others = None
    if file.also_present is not None:
        others = frozenset(register_id(name, settings.where("also_present")) for name in file.also_present)
    return HostProfile(
        description=file.description,
        values=values,
        others=others,
        kernel=file.kernel,
        vcpu_features=file.vcpu_features,
        sve_vector_lengths=file.sve_vector_lengths,
        timer_frequency=file.timer_frequency,
        writable=None if file.writable is None else _values(settings, "writable", file.writable),
    )


def _values(settings: Settings[_File], table: str, entries: dict[str, str]) -> dict[int, int]:
    values: dict[int, int] = {}
    for name, text in entries.items():
        where = settings.where(table, name)
        register = register_id(name, where)
        if register in values:
            raise ConfigError(f"{where}: the register is there twice")
        values[register] = register_value(text, where)
    return values
