"""Host profiles: which registers a host has, and the values of those that belong to its processor.

A profile holds for vCPUs of the features it was made with (SVE, PAuth, PMU, 32-bit EL1), as long as kernel, QEMU and
processor stay the same.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.arm.midr import parse_midr_el1
from formats.arm.sysreg import MIDR_EL1, Kind, describe
from proxy.errors import RefusedError

if TYPE_CHECKING:
    from formats.arm.register_list import RegisterList

SCHEMA_VERSION = 1
_HOST_KINDS = (Kind.IDENTIFICATION, Kind.CACHE_ID, Kind.FIRMWARE, Kind.FEATURE_BITMAP)


@dataclass(frozen=True, slots=True)
class HostProfile:
    """A host's registers.

    Attributes:
        description: Where the profile comes from, for people.
        values: The value of each register that belongs to the host, by id.
        others: The ids of registers that the host has and whose values belong to the guest; None when the profile
            does not list all the registers, as when only a processor id was given.
        kernel: The host's kernel, as `uname -sr` has it; None when it is not known, as after learning from a stream.
        vcpu_features: What the vCPU was created with (KVM_ARM_VCPU_*); None when it is not known.
        sve_vector_lengths: The lengths of SVE vectors, in bytes; none without SVE, None when they are not known.
        timer_frequency: CNTFRQ_EL0, in Hz; None when it is not known.
        writable: The bits that KVM lets be written, by id of the ID registers; None when the kernel does not tell
            (before Linux 6.7), or it is not known.
    """

    description: str
    values: dict[int, int]
    others: frozenset[int] | None = None
    kernel: str | None = None
    vcpu_features: tuple[str, ...] | None = None
    sve_vector_lengths: tuple[int, ...] | None = None
    timer_frequency: int | None = None
    writable: dict[int, int] | None = None

    @property
    def midr(self) -> int | None:
        """The processor id; None when the profile has none, as one learned from a TCG stream."""
        return self.values.get(MIDR_EL1)

    def lacks(self, register: int) -> bool:
        """Whether the host is known not to have a register."""
        return self.others is not None and register not in self.values and register not in self.others


def learn_profile(vcpus: "Iterable[RegisterList]", description: str) -> HostProfile:
    """Make a profile of the host that a stream was recorded on.

    Args:
        vcpus: The registers of each vCPU in the stream.
        description: Where the stream comes from, for people.

    Raises:
        RefusedError: There is no arm64 vCPU in it, or its vCPUs ran on unlike processors.
    """
    profile: HostProfile | None = None
    for registers in vcpus:
        own = host_values(registers.items())
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


def host_values(registers: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return those of the registers whose values belong to the host, not to the guest."""
    return {register: value for register, value in registers if describe(register).kind in _HOST_KINDS}


def write_profile(profile: HostProfile) -> str:
    """Write a profile as TOML, in the order of the register ids."""
    return "\n".join(_lines(profile)) + "\n"


def _lines(profile: HostProfile) -> Iterator[str]:
    yield "# A host profile of vmstate-proxy: what this host's registers are, as a guest of it has them."
    yield "# It holds for guests with the same vCPU features, until kernel, QEMU or processor change."
    yield f"schema_version = {SCHEMA_VERSION}"
    yield f"description = {_quoted(profile.description)}"
    if profile.kernel is not None:
        yield f"kernel = {_quoted(profile.kernel)}"
    if profile.vcpu_features is not None:
        yield f"vcpu_features = [{', '.join(_quoted(feature) for feature in profile.vcpu_features)}]"
    if profile.sve_vector_lengths is not None:
        yield f"sve_vector_lengths = {list(profile.sve_vector_lengths)}"
    if profile.timer_frequency is not None:
        yield f"timer_frequency = {profile.timer_frequency}"
    if profile.others is not None:
        yield ""
        yield "# Registers that the host has, too; their values belong to the guest."
        yield "also_present = ["
        yield from (f"    {_quoted(describe(register).name)}," for register in sorted(profile.others))
        yield "]"
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
        yield "# The bits that this host's KVM lets be written in ID registers; in all others they are fixed."
        yield from _table("writable", profile.writable, sorted(profile.writable))


def _table(name: str, values: dict[int, int], registers: Iterable[int]) -> Iterator[str]:
    yield f"[{name}]"
    for register in registers:
        name = describe(register).name
        key = name if name.replace("_", "").isalnum() else _quoted(name)
        yield f'{key} = "{values[register]:#x}"'


def _quoted(text: str) -> str:
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
