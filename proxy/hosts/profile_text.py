"""A host profile as text: TOML that people can read and compare, in the order of the register ids."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from formats.arm.midr import parse_midr_el1
from formats.arm.sysreg import Kind, describe
from proxy.hosts.profile import HostProfile, absent_without

if TYPE_CHECKING:
    from proxy.hosts.interrupts import HostInterrupts
    from proxy.hosts.taken import Taken

SCHEMA_VERSION: Final = 2
_COLUMNS: Final = 120


def write_profile(profile: HostProfile) -> str:
    """Write a profile as TOML, in the order of the register ids."""
    return "\n".join(_lines(profile)) + "\n"


def _lines(profile: HostProfile) -> Iterator[str]:
    yield "# A host profile of vmstate-proxy: what this host's registers are, as a guest of it has them."
    yield "# It holds until kernel, QEMU or processor change, for guests with vCPUs of the kinds that it knows."
    yield from _head(profile)
    firmware = {id_ for id_ in profile.values if describe(id_).kind in (Kind.FIRMWARE, Kind.FEATURE_BITMAP)}
    yield ""
    yield "# What describes the processor: KVM wants it back as it is."
    if profile.midr is not None:
        yield f"# The processor: {parse_midr_el1(profile.midr)}."
    yield from _table("registers", profile.values, sorted(profile.values.keys() - firmware))
    if firmware:
        yield ""
        yield "# What KVM's firmware offers: PSCI version, mitigations, hypercalls."
        yield from _table("firmware", profile.values, sorted(firmware))
    if profile.writable is not None:
        yield ""
        yield "# The bits that this host's KVM says may be written in ID registers."
        yield from _table("writable", profile.writable, sorted(profile.writable))
    if profile.taken is not None:
        yield ""
        yield "# What this host's KVM was seen to take beside its own values, field by field; it takes nothing else."
        yield from _taken("taken", profile.taken)
    if profile.interrupts is not None:
        yield from _interrupts(profile.interrupts)
    yield from _variants(profile)


def _interrupts(interrupts: "HostInterrupts") -> Iterator[str]:
    yield ""
    yield "# The interrupt controllers of guests here; QEMU aborts where KVM does not take what a guest brings of them."
    yield "[interrupts]"
    yield f"gic_versions = {list(interrupts.gic_versions)}"
    if interrupts.icc_ctlr is not None:
        yield f'ICC_CTLR_EL1 = "{interrupts.icc_ctlr:#x}"'
        yield from _wrapped("ICC_CTLR_EL1_taken", map(str, interrupts.icc_ctlr_taken))
    if interrupts.its_revisions is not None:
        yield f"its_revisions = {list(interrupts.its_revisions)}"


def _head(profile: HostProfile) -> Iterator[str]:
    # What cannot say which kinds it knows stays what it was.
    yield f"schema_version = {1 if profile.variants is None else SCHEMA_VERSION}"
    yield f"description = {_quoted(profile.description)}"
    if profile.addresses:
        yield f"addresses = {_list(profile.addresses)}"
    if profile.kernel is not None:
        yield f"kernel = {_quoted(profile.kernel)}"
    if profile.qemu is not None:
        yield f"qemu = {_quoted(profile.qemu)}"
    if profile.vcpu_features is not None:
        yield f"vcpu_features = {_list(profile.vcpu_features)}"
    if profile.all_kinds:
        yield "all_kinds = true"
    if profile.variants:
        yield f"kinds = {1 + len(profile.variants)}"
    if profile.sve_vector_lengths is not None:
        yield f"sve_vector_lengths = {list(profile.sve_vector_lengths)}"
    if profile.timer_frequency is not None:
        yield f"timer_frequency = {profile.timer_frequency}"
    if profile.others is not None:
        yield ""
        yield "# Registers that the host has, too; their values belong to the guest."
        yield from _register_list("also_present", profile.others)


def _variants(profile: HostProfile) -> Iterator[str]:
    only_with = _only_with(profile)
    if only_with:
        yield ""
        yield "# Registers that only vCPUs with a feature have."
        yield "[only_with]"
        for feature, registers in only_with.items():
            yield from _register_list(feature, registers)
    for variant in profile.variants or ():
        yield ""
        yield "# What is other for guests whose vCPUs have these features."
        yield "[[variants]]"
        yield f"vcpu_features = {_list(variant.vcpu_features)}"
        absent = variant.absent - absent_without(only_with, profile.vcpu_features or (), variant.vcpu_features)
        if absent:
            yield from _register_list("absent", absent)
        if variant.others:
            yield from _register_list("also_present", variant.others)
        yield f"changed = {len(variant.values)}"
        if variant.taken:
            yield from _taken("variants.taken", variant.taken)
        # Last, so that what is cut off is missed.
        yield from _table("variants.registers", variant.values, sorted(variant.values))


def _only_with(profile: HostProfile) -> dict[str, frozenset[int]]:
    """Return the registers that are absent wherever a feature is, by its name; the variants need not name them."""
    variants = profile.variants or ()
    found = {}
    named: frozenset[int] = frozenset()
    for feature in profile.vcpu_features or ():
        without = [variant.absent for variant in variants if feature not in variant.vcpu_features]
        if not without:
            continue
        registers = frozenset.intersection(*without) - named
        if registers:
            found[feature] = registers
            named |= registers
    return found


def _table(name: str, values: Mapping[int, int], registers: Iterable[int]) -> Iterator[str]:
    yield f"[{name}]"
    for register in registers:
        yield f'{_key(register)} = "{values[register]:#x}"'


def _taken(name: str, taken: "Taken") -> Iterator[str]:
    yield f"[{name}]"
    for register in sorted(taken):
        yield from _wrapped(_key(register), map(str, taken[register]))


def _register_list(name: str, registers: Iterable[int]) -> Iterator[str]:
    yield from _wrapped(name, (describe(register).name for register in sorted(registers)))


def _wrapped(key: str, items: Iterable[str]) -> Iterator[str]:
    """Write a list on one line, or on as many as it takes."""
    texts = [_quoted(item) for item in items]
    line = f"{key} = [{', '.join(texts)}]"
    if len(line) <= _COLUMNS:
        yield line
        return
    yield f"{key} = ["
    line = "   "
    for text in texts:
        if len(line) + len(text) + 2 > _COLUMNS:
            yield line
            line = "   "
        line += f" {text},"
    yield line
    yield "]"


def _list(items: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, items))}]"


def _key(register: int) -> str:
    name = describe(register).name
    return name if name.replace("_", "").isalnum() else _quoted(name)


def _quoted(text: str) -> str:
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
