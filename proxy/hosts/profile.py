"""Host profiles: which registers a host has, and the values of those that belong to its processor.

A vCPU's registers depend on the features that it is created with (SVE, PAuth, PMU). A profile holds what a vCPU of one
kind has, and for each other kind that its host was asked about, what is other then. It is true as long as kernel, QEMU
and processor stay the same. Its file is written in `profile_text` and read in `profile_file`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from formats.arm.sysreg import MIDR_EL1, Kind, describe
from formats.arm.vcpu_features import Kind as VcpuKind
from formats.arm.vcpu_features import VcpuFeature, kind_of

if TYPE_CHECKING:
    from proxy.hosts.interrupts import HostInterrupts
    from proxy.hosts.taken import Taken
    from proxy.settings.origin import Origin

HOST_KINDS = (Kind.IDENTIFICATION, Kind.CACHE_ID, Kind.FIRMWARE, Kind.FEATURE_BITMAP)
"""The kinds of registers whose values belong to the host, not to the guest."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What is other for a vCPU of another kind on the same host.

    Attributes:
        vcpu_features: What it is created with.
        values: The host's values that are other, by register id, and those of registers that only this kind has.
        absent: Ids of registers that this kind has not.
        others: Ids of registers that only this kind has, and whose values belong to the guest.
        taken: What KVM was asked of the registers in `values`, if anything.
    """

    vcpu_features: tuple[str, ...]
    values: dict[int, int]
    absent: frozenset[int] = frozenset()
    others: frozenset[int] = frozenset()
    taken: "Taken" = field(default_factory=dict)

    @property
    def kind(self) -> VcpuKind:
        """The kind of such a vCPU."""
        return kind_of_features(self.vcpu_features)


@dataclass(frozen=True, slots=True)
class HostProfile:
    """A host's registers, as a vCPU of one kind has them, and what is other for other kinds.

    Attributes:
        description: Where the profile comes from, for people.
        values: The value of each register that belongs to the host, by id.
        others: The ids of registers that the host has and whose values belong to the guest; None when the profile
            does not list all the registers, as when only a processor id was given.
        kernel: The host's kernel, as `uname -sr` has it; None when it is not known, as after learning from a stream.
        qemu: The version of the host's QEMU, such as `10.0.13`; None when it is not known.
        vcpu_features: What the vCPU was created with (KVM_ARM_VCPU_*); None when it is not known.
        sve_vector_lengths: The lengths of SVE vectors, in bytes; none without SVE, None when they are not known.
        timer_frequency: CNTFRQ_EL0, in Hz; None when it is not known.
        writable: The bits that KVM says may be written, by id of the ID registers; None when it was asked value by
            value (`taken`), when the kernel does not tell (before Linux 6.7), or it is not known.
        taken: What KVM was seen to take beside its own values; None when it was not asked.
        variants: What is other for the other kinds that it knows; None when it cannot say (schema_version 1).
        all_kinds: Whether it knows every kind that the host has.
        interrupts: Its interrupt controllers; None when they are not known.
        addresses: Which hosts it is for, by address, network or name; none where its file's name says so.
        origin: The file that it was read from; None where there is none.
    """

    description: str
    values: dict[int, int]
    others: frozenset[int] | None = None
    kernel: str | None = None
    qemu: str | None = None
    vcpu_features: tuple[str, ...] | None = None
    sve_vector_lengths: tuple[int, ...] | None = None
    timer_frequency: int | None = None
    writable: dict[int, int] | None = None
    taken: "Taken | None" = None
    variants: tuple[Variant, ...] | None = ()
    all_kinds: bool = False
    interrupts: "HostInterrupts | None" = None
    addresses: tuple[str, ...] = ()
    origin: "Origin | None" = field(default=None, compare=False)

    @property
    def midr(self) -> int | None:
        """The processor id; None when the profile has none, as one learned from a TCG stream."""
        return self.values.get(MIDR_EL1)

    @property
    def kind(self) -> VcpuKind:
        """The kind of vCPU that `values` and `others` speak of."""
        return kind_of(_Listed(self))

    @property
    def kinds(self) -> list[VcpuKind]:
        """All the kinds that it knows, its own first."""
        return [self.kind, *(variant.kind for variant in self.variants or ())]

    def stale(self, kernel: str, qemu: str | None) -> str | None:
        """Say what is other on its host now than when the profile was made; None when nothing is, or it is not known.

        Args:
            kernel: What the host runs now, as `uname -sr` has it.
            qemu: The version of its QEMU now.
        """
        then = [("kernel", self.kernel, kernel), ("QEMU", self.qemu, qemu)]
        changed = [f"{what} was {old}, and is {new}" for what, old, new in then if old and new and old != new]
        return f"its {' and its '.join(changed)}: make it anew with 'host probe'" if changed else None

    def lacks(self, register: int) -> bool:
        """Whether the host is known not to have a register."""
        return self.others is not None and register not in self.values and register not in self.others

    def for_kind(self, kind: VcpuKind) -> "HostProfile | None":
        """Return what the host is for a vCPU of a kind, as its QEMU has to be started for such a guest.

        Features that the host does not have at all are left aside: a guest that has them finds registers missing.

        Returns:
            The profile of that kind; None when this profile does not know it.
        """
        if self.others is None or kind == self.kind:
            return self
        if self.variants is None:
            # Whoever has more was always judged by what is missing; what has less was judged wrongly.
            return self if kind > self.kind else None
        if self.all_kinds:
            kind &= frozenset[VcpuFeature]().union(*self.kinds)
        if kind == self.kind:
            return self
        return next((self.with_variant(variant) for variant in self.variants if variant.kind == kind), None)

    def with_variant(self, variant: Variant) -> "HostProfile":
        """Return the profile of one kind, for which it lists all registers."""
        assert self.others is not None
        values = {id_: value for id_, value in self.values.items() if id_ not in variant.absent} | variant.values
        taken = (
            None
            if self.taken is None
            else {
                id_: fields
                for id_, fields in self.taken.items()
                if id_ not in variant.values and id_ not in variant.absent
            }
            | dict(variant.taken)
        )
        has_sve = VcpuFeature.SVE in variant.kind
        return replace(
            self,
            values=values,
            others=(self.others - variant.absent | variant.others) - values.keys(),
            vcpu_features=variant.vcpu_features,
            sve_vector_lengths=self.sve_vector_lengths if has_sve or self.sve_vector_lengths is None else (),
            taken=taken,
            variants=(),
            all_kinds=False,
        )


@dataclass(frozen=True, slots=True)
class _Listed:
    """The registers of a profile's own kind, to tell the kind by."""

    profile: HostProfile

    def get(self, register: int, /) -> int | None:
        return self.profile.values.get(register)

    def __contains__(self, register: int, /) -> bool:
        profile = self.profile
        return register in profile.values or (profile.others is not None and register in profile.others)


def kind_of_features(names: Iterable[str]) -> VcpuKind:
    """Return the kind of a vCPU that is created with features; EL1_32BIT and PSCI_0_2 change no register."""
    return frozenset(VcpuFeature(name) for name in names if name in VcpuFeature.__members__) - {VcpuFeature.EL1_32BIT}


def absent_without(
    only_with: Mapping[str, frozenset[int]], features: Iterable[str], others: Iterable[str]
) -> frozenset[int]:
    """Return the registers that vCPUs lack for the features that only others have.

    Args:
        only_with: Registers that only vCPUs with a feature have, by the feature's name.
        features: What the vCPUs that have them are created with.
        others: What those that lack them are created with.
    """
    return frozenset[int]().union(*(only_with.get(name, frozenset()) for name in set(features) - set(others)))


def variant_of(base: HostProfile, other: HostProfile) -> Variant:
    """Return what is other in a profile of the same host that speaks of another kind; both list all registers."""
    assert base.others is not None
    assert other.others is not None
    listed, others_listed = base.others | base.values.keys(), other.others | other.values.keys()
    values = {id_: value for id_, value in other.values.items() if base.values.get(id_) != value}
    return Variant(
        vcpu_features=other.vcpu_features or tuple(sorted(other.kind)),
        values=values,
        absent=frozenset(listed - others_listed),
        others=frozenset(other.others - listed),
        taken={id_: fields for id_, fields in (other.taken or {}).items() if id_ in values},
    )


def host_values(registers: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return those of the registers whose values belong to the host, not to the guest."""
    return {register: value for register, value in registers if describe(register).kind in HOST_KINDS}
