"""Loading host profiles from their files."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec

from formats.arm.gic import ICC_CTLR_EL1
from formats.arm.sysreg import describe
from formats.arm.vcpu_features import named
from proxy.errors import ConfigError
from proxy.hosts.interrupts import HostInterrupts
from proxy.hosts.kvm import Feature
from proxy.hosts.profile import HostProfile, Variant, absent_without
from proxy.hosts.taken import Taken, TakenField, parse_taken
from proxy.settings.register_names import register_id, register_value
from proxy.settings.toml_file import Place, Settings, load_toml

T = TypeVar("T")

_SINCE_VERSION_2: Final = ("qemu", "all_kinds", "taken", "interrupts", "only_with", "variants")


class _Variant(msgspec.Struct, forbid_unknown_fields=True):
    """What is other for vCPUs of another kind."""

    vcpu_features: tuple[str, ...]
    changed: int
    absent: list[str] = []
    also_present: list[str] = []
    registers: dict[str, str] = {}
    taken: dict[str, list[str]] = {}


class _Interrupts(msgspec.Struct, forbid_unknown_fields=True):
    """The interrupt controllers."""

    gic_versions: tuple[int, ...]
    icc_ctlr: str | None = msgspec.field(default=None, name="ICC_CTLR_EL1")
    icc_ctlr_taken: list[str] = msgspec.field(default_factory=list, name="ICC_CTLR_EL1_taken")
    its_revisions: tuple[int, ...] | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A profile as it stands in its file; register names or ids are the keys, hexadecimal strings the values."""

    schema_version: Literal[1, 2]
    registers: dict[str, str]
    description: str = ""
    kernel: str | None = None
    qemu: str | None = None
    vcpu_features: tuple[str, ...] | None = None
    all_kinds: bool = False
    kinds: int = 1
    sve_vector_lengths: tuple[int, ...] | None = None
    timer_frequency: int | None = None
    firmware: dict[str, str] = {}
    writable: dict[str, str] | None = None
    taken: dict[str, list[str]] | None = None
    also_present: list[str] | None = None
    interrupts: _Interrupts | None = None
    only_with: dict[str, list[str]] = {}
    addresses: tuple[str, ...] = ()
    variants: list[_Variant] = []


def load_profile(path: Path) -> HostProfile:
    """Load a profile.

    Raises:
        ConfigError: The file is no profile; the message names the key.
    """
    settings = load_toml(path, _File)
    file = settings.value
    values = _values(settings, ("registers",), file.registers)
    for register, value in _values(settings, ("firmware",), file.firmware).items():
        if register in values:
            raise ConfigError(f"{settings.where('firmware')}: {describe(register).name} is among the registers, too")
        values[register] = value
    if file.schema_version == 1:
        newer = [key for key in _SINCE_VERSION_2 if getattr(file, key)]
        if newer:
            raise ConfigError(f"{settings.where(newer[0])}: a profile of schema_version 1 has no such key")
    profile = HostProfile(
        description=file.description,
        values=values,
        others=None if file.also_present is None else _registers(settings, ("also_present",), file.also_present),
        kernel=file.kernel,
        qemu=file.qemu,
        vcpu_features=file.vcpu_features,
        sve_vector_lengths=file.sve_vector_lengths,
        timer_frequency=file.timer_frequency,
        writable=None if file.writable is None else _values(settings, ("writable",), file.writable),
        taken=None if file.taken is None else _taken(settings, ("taken",), file.taken),
        variants=None if file.schema_version == 1 else (),
        all_kinds=file.all_kinds,
        interrupts=None if file.interrupts is None else _interrupts(settings, file.interrupts),
        addresses=file.addresses,
        origin=settings.origin,
    )
    return _with_variants(settings, profile)


def _with_variants(settings: "Settings[_File]", profile: HostProfile) -> HostProfile:
    """Add the variants, each of which has to fit to what the profile says of its own kind."""
    promised, there = settings.value.kinds, 1 + len(settings.value.variants)
    if promised != there:
        raise ConfigError(f"{settings.where('kinds')}: {promised} are promised, and {there} there; is the file whole?")
    only_with = {
        name: _registers(settings, ("only_with", name), registers)
        for name, registers in settings.value.only_with.items()
    }
    variants: list[Variant] = []
    for index, entry in enumerate(settings.value.variants):
        path = "variants", index
        variant = Variant(
            vcpu_features=entry.vcpu_features,
            values=_values(settings, (*path, "registers"), entry.registers),
            absent=_registers(settings, (*path, "absent"), entry.absent)
            | absent_without(only_with, profile.vcpu_features or (), entry.vcpu_features),
            others=_registers(settings, (*path, "also_present"), entry.also_present),
            taken=_taken(settings, (*path, "taken"), entry.taken),
        )
        if entry.changed != len(entry.registers):
            raise ConfigError(
                f"{settings.where(*path, 'changed')}: {entry.changed} registers are promised, and "
                f"{len(entry.registers)} there; is the file whole?"
            )
        wrong = _what_is_wrong(profile, variant)
        if wrong is not None:
            key, what = wrong
            raise ConfigError(f"{settings.where(*path, key)}: {what}")
        if variant.kind in (profile.kind, *(one.kind for one in variants)):
            raise ConfigError(f"{settings.where(*path, 'vcpu_features')}: vCPUs with these are spoken of twice")
        variants.append(variant)
    return replace(profile, variants=tuple(variants)) if variants else profile


def _what_is_wrong(profile: HostProfile, variant: Variant) -> tuple[str, str] | None:
    """Return the key of what does not fit in a variant, and why; None when all does."""
    if profile.others is None:
        return "vcpu_features", "a profile without also_present has no variants"
    unknown = next((name for name in variant.vcpu_features if name not in Feature.__members__), None)
    if unknown is not None:
        return "vcpu_features", f"there is no vCPU feature {unknown}"
    missing = next((one for one in sorted(variant.absent) if profile.lacks(one)), None)
    if missing is not None:
        return "absent", f"the profile has no register {describe(missing).name} that could be absent"
    twice = next((one for one in sorted(variant.absent) if one in variant.values or one in variant.others), None)
    if twice is not None:
        return "absent", f"{describe(twice).name} is absent and there at once"
    told = profile.with_variant(variant).kind
    if told != variant.kind:
        return "vcpu_features", f"its registers are those of vCPUs with {named(told)}; is the variant whole?"
    return None


def _interrupts(settings: "Settings[_File]", entry: _Interrupts) -> HostInterrupts:
    value = settings.where("interrupts", "ICC_CTLR_EL1")
    taken = _taken(settings, ("interrupts",), {"ICC_CTLR_EL1": entry.icc_ctlr_taken})
    return HostInterrupts(
        gic_versions=entry.gic_versions,
        icc_ctlr=None if entry.icc_ctlr is None else register_value(entry.icc_ctlr, value),
        icc_ctlr_taken=tuple(taken[ICC_CTLR_EL1]),
        its_revisions=entry.its_revisions,
    )


def _registers(settings: "Settings[_File]", key: "tuple[str | int, ...]", names: list[str]) -> frozenset[int]:
    where = settings.place(*key)
    return frozenset(register_id(name, where) for name in names)


def _values(settings: "Settings[_File]", key: "tuple[str | int, ...]", entries: dict[str, str]) -> dict[int, int]:
    return {register: register_value(text, where) for register, where, text in _by_register(settings, key, entries)}


def _taken(settings: "Settings[_File]", key: "tuple[str | int, ...]", entries: dict[str, list[str]]) -> Taken:
    taken: dict[int, tuple[TakenField, ...]] = {}
    for register, where, texts in _by_register(settings, key, entries):
        try:
            taken[register] = tuple(parse_taken(register, text) for text in texts)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    return taken


def _by_register(
    settings: "Settings[_File]", key: "tuple[str | int, ...]", entries: dict[str, T]
) -> Iterator[tuple[int, Place, T]]:
    """Yield register id, place in the file and entry of a table."""
    seen = set()
    for name, entry in entries.items():
        where = settings.place(*key, name)
        register = register_id(name, where)
        if register in seen:
            raise ConfigError(f"{where}: the register is there twice")
        seen.add(register)
        yield register, where, entry
