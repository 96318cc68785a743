"""Loading policies from their files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from formats.arm.id_fields import fields_of
from formats.arm.sysreg import MIDR_EL1, Kind, describe
from proxy.errors import ConfigError
from proxy.policy.acceptance import Acceptance, parse_errata, parse_losses
from proxy.policy.policy import Mode, Policy, Requirements
from proxy.policy.rules import OverlapError, Rule, RuleAction, Rules
from proxy.policy.whitelist import Pairing
from proxy.settings.register_names import (
    droppable_register,
    host_register,
    invariant_register,
    parse_source,
    suggested,
    whitelisted_processors,
)
from proxy.settings.toml_file import Settings, load_toml


class _Set(msgspec.Struct, forbid_unknown_fields=True):
    """Processors whose guests may go to each other, or one way."""

    reason: str = ""
    processors: list[str] = []
    source: list[str] = msgspec.field(name="from", default_factory=list)
    to: list[str] = []


class _Whitelist(msgspec.Struct, forbid_unknown_fields=True):
    midr: list[str] = []
    sets: list[_Set] = []


class _Registers(msgspec.Struct, forbid_unknown_fields=True):
    swap: list[str] | None = None
    drop: list[str] = []
    drop_harmless: bool = True


class _Rule(msgspec.Struct, forbid_unknown_fields=True):
    registers: list[str]
    action: RuleAction
    fields: list[str] = []
    reason: str = ""


class _Require(msgspec.Struct, forbid_unknown_fields=True):
    return_path: bool = True
    vmdesc: bool = False
    device_state_mib: int | None = None
    machines: list[str] = []


class _Accept(msgspec.Struct, forbid_unknown_fields=True):
    lost_features: list[str] = []
    errata: list[str] = []


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A policy as it stands in its file."""

    schema_version: Literal[1]
    mode: Mode = Mode.REPAIR
    whitelist: _Whitelist = msgspec.field(default_factory=_Whitelist)
    registers: _Registers = msgspec.field(default_factory=_Registers)
    rule: list[_Rule] = []
    require: _Require = msgspec.field(default_factory=_Require)
    accept: _Accept = msgspec.field(default_factory=_Accept)


def load_policy(path: Path) -> Policy:
    """Load a policy.

    Raises:
        ConfigError: The file is no policy; the message names the line and the key.
    """
    settings = load_toml(path, _File)
    file = settings.value
    try:
        rules = Rules.of(_rules(settings))
    except OverlapError as error:
        name = describe(error.register).name
        raise ConfigError(f"{error.second.where}: {name} has a rule already, at {error.first.where}") from None
    return Policy(
        whitelist=tuple(_whitelist(settings)),
        rules=rules,
        mode=file.mode,
        drop_harmless=file.registers.drop_harmless,
        require=_requirements(settings),
        accept=Acceptance(
            parse_losses(file.accept.lost_features, settings.where("accept", "lost_features")),
            parse_errata(file.accept.errata, settings.where("accept", "errata")),
        ),
        origin=settings.origin,
    )


def _whitelist(settings: Settings[_File]) -> Iterator[Pairing]:
    whitelist = settings.value.whitelist
    where = settings.where("whitelist", "midr")
    for text in whitelist.midr:
        yield Pairing(where, (parse_source(text, where),))
    for index, one in enumerate(whitelist.sets):
        key = ("whitelist", "sets", index)
        if bool(one.processors) == bool(one.source or one.to) or bool(one.source) != bool(one.to):
            raise ConfigError(f"{settings.where(*key)}: give either processors, which may go both ways, or from and to")
        both = tuple(whitelisted_processors(text, settings.where(*key, "processors")) for text in one.processors)
        sources = tuple(parse_source(text, settings.where(*key, "from")) for text in one.source)
        destinations = tuple(whitelisted_processors(text, settings.where(*key, "to")) for text in one.to)
        yield Pairing(settings.where(*key), both or sources, both or destinations, one.reason)


def _rules(settings: Settings[_File]) -> Iterator[tuple[int, Rule]]:
    file = settings.value
    named = {parse for one in file.rule for parse in one.registers}
    swap = file.registers.swap
    if swap is None and not any(name.strip().upper() == "MIDR_EL1" for name in named):
        yield MIDR_EL1, Rule("default", RuleAction.SWAP)
    where = settings.where("registers", "swap")
    for name in swap or ():
        yield invariant_register(name, where), Rule(where, RuleAction.SWAP)
    where = settings.where("registers", "drop")
    for name in file.registers.drop:
        yield droppable_register(name, where), Rule(where, RuleAction.DROP)
    for index, one in enumerate(file.rule):
        yield from _long_rule(settings, index, one)


def _long_rule(settings: Settings[_File], index: int, one: _Rule) -> Iterator[tuple[int, Rule]]:
    where = settings.where("rule", index, "registers")
    if not one.registers:
        raise ConfigError(f"{where}: a rule needs a register")
    if one.fields and (len(one.registers) > 1 or one.action is RuleAction.DROP):
        raise ConfigError(f"{settings.where('rule', index, 'fields')}: fields go with one register, and not with drop")
    place = settings.where("rule", index)
    for name in one.registers:
        register = _allowed(name, where, one)
        for field in one.fields:
            _known_field(register, field, settings.where("rule", index, "fields"))
            yield register, Rule(place, one.action, field, one.reason)
        if not one.fields:
            yield register, Rule(place, one.action, None, one.reason)


def _allowed(name: str, where: str, one: _Rule) -> int:
    """Return a register's id, if a rule may say that of it; what the firmware offers may be lowered with a reason."""
    if one.action is RuleAction.DROP:
        return droppable_register(name, where)
    register = host_register(name, where)
    firmware = describe(register).kind in (Kind.FIRMWARE, Kind.FEATURE_BITMAP)
    if firmware and one.action is RuleAction.SWAP and not one.reason:
        raise ConfigError(
            f"{where}: {describe(register).name} is what the guest was told of mitigations and hypercalls; a rule that "
            "lets it be lowered needs a reason"
        )
    return register


def _known_field(register: int, field: str, where: str) -> None:
    names = [known.name for known in fields_of(register)]
    if field not in names:
        raise ConfigError(f"{where}: {describe(register).name} has no field {field!r}{suggested(field, names)}")


def _requirements(settings: Settings[_File]) -> Requirements:
    require = settings.value.require
    mebibytes = require.device_state_mib
    if mebibytes is not None and not 1 <= mebibytes <= 4096:
        raise ConfigError(f"{settings.where('require', 'device_state_mib')}: it goes from 1 to 4096")
    return Requirements(
        return_path=require.return_path,
        vmdesc=require.vmdesc,
        device_state_limit=None if mebibytes is None else mebibytes << 20,
        machines=tuple(require.machines),
    )
