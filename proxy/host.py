"""Host profiles: which registers a host has, and the values of those that belong to its processor.

A profile holds for vCPUs of the features it was made with (SVE, PAuth, PMU, 32-bit EL1), as long as kernel, QEMU and
processor stay the same.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from formats.arm_cpu import RegisterList
from formats.sysreg import MIDR_EL1, Kind, describe
from proxy.errors import ConfigError, RefusedError
from proxy.settings_file import SCHEMA_VERSION, load_toml, register_id, register_value

_HOST_KINDS = (Kind.IDENTIFICATION, Kind.CACHE_ID, Kind.FIRMWARE, Kind.FEATURE_BITMAP)


@dataclass(frozen=True, slots=True)
class HostProfile:
    """A host's registers.

    Attributes:
        description: Where the profile comes from, for people.
        values: The value of each register that belongs to the host, by id.
        others: The ids of registers that the host has and whose values belong to the guest; None when the profile
            does not list all the registers, as when only a processor id was given.
    """

    description: str
    values: dict[int, int]
    others: frozenset[int] | None = None

    @property
    def midr(self) -> int | None:
        """The processor id; None when the profile has none, as one learned from a TCG stream."""
        return self.values.get(MIDR_EL1)

    def lacks(self, register: int) -> bool:
        """Whether the host is known not to have a register."""
        return self.others is not None and register not in self.values and register not in self.others


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A profile as it stands in its file; register names or ids are the keys, hexadecimal strings the values."""

    schema_version: Literal[1]
    registers: dict[str, str]
    description: str = ""
    firmware: dict[str, str] = {}
    also_present: list[str] | None = None


def load_profile(path: Path) -> HostProfile:
    """Load a profile.

    Raises:
        ConfigError: The file is no profile; the message names the key.
    """
    file = load_toml(path, _File)
    values: dict[int, int] = {}
    for table, entries in (("registers", file.registers), ("firmware", file.firmware)):
        for name, text in entries.items():
            where = f"{path}: {table}.{name}"
            register = register_id(name, where)
            if register in values:
                raise ConfigError(f"{where}: the register is there twice")
            values[register] = register_value(text, where)
    others = None
    if file.also_present is not None:
        others = frozenset(register_id(name, f"{path}: also_present") for name in file.also_present)
    return HostProfile(file.description, values, others)


def learn_profile(vcpus: Iterable[RegisterList], description: str) -> HostProfile:
    """Make a profile of the host that a stream was recorded on.

    Args:
        vcpus: The registers of each vCPU in the stream.
        description: Where the stream comes from, for people.

    Raises:
        RefusedError: There is no arm64 vCPU in it, or its vCPUs ran on unlike processors.
    """
    profile: HostProfile | None = None
    for registers in vcpus:
        own = {register: value for register, value in registers.items() if describe(register).kind in _HOST_KINDS}
        if profile is None:
            profile = HostProfile(description, own, frozenset(registers.ids) - own.keys())
        elif own != profile.values:
            register = next(
                id_ for id_ in own.keys() | profile.values.keys() if own.get(id_) != profile.values.get(id_)
            )
            raise RefusedError(
                f"vCPU {registers.vcpu}: {describe(register).name} differs from vCPU 0's, so the host has unlike "
                "processors; record the stream with QEMU pinned to cores of one kind"
            )
    if profile is None:
        raise RefusedError("the stream holds no arm64 vCPU, so there is no host to learn")
    return profile


def write_profile(profile: HostProfile) -> str:
    """Write a profile as TOML, in the order of the register ids."""
    return "\n".join(_lines(profile)) + "\n"


def _lines(profile: HostProfile) -> Iterator[str]:
    yield "# A host profile of vmstate-proxy: what this host's registers are, as a guest of it has them."
    yield "# It holds for guests with the same vCPU features, until kernel, QEMU or processor change."
    yield f"schema_version = {SCHEMA_VERSION}"
    yield f"description = {_quoted(profile.description)}"
    if profile.others is not None:
        yield ""
        yield "# Registers that the host has, too; their values belong to the guest."
        yield "also_present = ["
        yield from (f"    {_quoted(describe(register).name)}," for register in sorted(profile.others))
        yield "]"
    firmware = {id_ for id_ in profile.values if describe(id_).kind in (Kind.FIRMWARE, Kind.FEATURE_BITMAP)}
    yield ""
    yield "# What describes the processor: KVM wants it back as it is."
    yield from _table("registers", profile, sorted(profile.values.keys() - firmware))
    if firmware:
        yield ""
        yield "# What KVM's firmware offers: PSCI version, mitigations, hypercalls."
        yield from _table("firmware", profile, sorted(firmware))


def _table(name: str, profile: HostProfile, registers: Iterable[int]) -> Iterator[str]:
    yield f"[{name}]"
    for register in registers:
        name = describe(register).name
        key = name if name.replace("_", "").isalnum() else _quoted(name)
        yield f'{key} = "{profile.values[register]:#x}"'


def _quoted(text: str) -> str:
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
