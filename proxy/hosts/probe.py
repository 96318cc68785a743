"""Probing this host: its profile, read from its own KVM by a scratch vCPU. Standard library only, arm64 only."""

import ctypes
import mmap
import os
import platform
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from typing import TypeAlias

from formats.arm.midr import parse_midr_el1
from formats.arm.sysreg import MIDR_EL1, describe
from proxy.hosts.interrupts import HostInterrupts
from proxy.hosts.kvm import Feature, scratch_vcpu
from proxy.hosts.kvm_gic import probe_interrupts
from proxy.hosts.profile import HOST_KINDS, HostProfile, variant_of
from proxy.hosts.taken import TakenField, measure

_Asked: TypeAlias = dict[tuple[int, int, int | None], tuple[TakenField, ...]]

_OPTIONAL = (
    frozenset({Feature.PMU_V3}),
    frozenset({Feature.SVE}),
    frozenset({Feature.PTRAUTH_ADDRESS, Feature.PTRAUTH_GENERIC}),
)
"""What QEMU's `-cpu host` can be told to leave out, each alone: pmu=off, sve=off, pauth=off."""
_MAP_FAILED = ctypes.c_void_p(-1).value
_READ_CNTFRQ = bytes.fromhex("00e03bd5 c0035fd6")
"""`mrs x0, cntfrq_el0; ret`: the only way to the timer's frequency that every kernel leaves open to user space."""


def probe_host(features: frozenset[Feature] | None = None, *, measured: bool = True) -> HostProfile:
    """Read the registers of vCPUs of this host.

    Args:
        features: What the vCPU is to have, the only kind then; None for every kind that the host has, first the one
            that QEMU's `-cpu host` would have.
        measured: Whether to try what KVM takes.

    Raises:
        KvmError: There is no arm64 KVM here, or it does not have a feature.
    """
    asked: _Asked | None = {} if measured else None
    base = replace(_probe_kind(features, asked), timer_frequency=timer_frequency(), interrupts=_probe_interrupts())
    if features is not None:
        return base
    found = {base.kind: base}
    for fewer in other_kinds(base.vcpu_features or ()):
        other = _probe_kind(fewer, asked)
        # Linux 5.10 says the same of a vCPU without PMU as of one with it; such guests are of one kind.
        found.setdefault(other.kind, other)
    variants = (variant_of(base, other) for other in found.values() if other is not base)
    return replace(base, variants=tuple(variants), all_kinds=True)


def other_kinds(features: Iterable[str]) -> list[frozenset[Feature]]:
    """Return the features of every kind of vCPU that a host has beside the one with all of them.

    Pointer authentication comes with both features or with none. EL1_32BIT is left out: it changes no register.
    """
    offered = frozenset(Feature[name] for name in features)
    parts = [part for part in _OPTIONAL if part <= offered]
    without = (
        frozenset[Feature]().union(*those) for count in range(1, len(parts) + 1) for those in combinations(parts, count)
    )
    return [offered - those for those in without]


def _probe_kind(features: frozenset[Feature] | None, asked: "_Asked | None") -> HostProfile:
    """Read the registers of a vCPU of one kind.

    Args:
        features: What it is to have; None for what QEMU's `-cpu host` would give it.
        asked: What KVM answered for other kinds, by register, value and writable bits; added to. None to try nothing.
    """
    with scratch_vcpu(features) as vcpu:
        ids = vcpu.registers()
        values = {register: vcpu.get(register) for register in ids if describe(register).kind in HOST_KINDS}
        masks = vcpu.writable_masks()
        taken: dict[int, tuple[TakenField, ...]] | None = None if asked is None else {}
        if asked is not None and taken is not None:
            for register, own in values.items():
                mask = None if masks is None else masks.get(register)
                answer = asked.get((register, own, mask))
                if answer is None:
                    answer = asked[register, own, mask] = measure(vcpu, register, own, mask)
                if answer:
                    taken[register] = answer
        system = os.uname()
        return HostProfile(
            description=f"probed on {platform.node()}: {parse_midr_el1(values[MIDR_EL1])}",
            values=values,
            others=frozenset(ids) - values.keys(),
            kernel=f"{system.sysname} {system.release}",
            vcpu_features=tuple(sorted(feature.name for feature in vcpu.features)),
            sve_vector_lengths=vcpu.sve_vector_lengths(),
            taken=taken,
        )


def _probe_interrupts() -> HostInterrupts:
    with scratch_vcpu() as vcpu:
        return probe_interrupts(vcpu)


def timer_frequency() -> int | None:
    """Return CNTFRQ_EL0 in Hz; None where no code can be mapped."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    # Through a file, so that the kernel cleans the caches when it maps what was written for execution. By its name,
    # for Python before 3.8 has no os.memfd_create.
    descriptor = libc.memfd_create(b"cntfrq", 0)
    if descriptor < 0:
        return None
    try:
        os.write(descriptor, _READ_CNTFRQ)
        address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, descriptor, 0)
    finally:
        os.close(descriptor)
    if address in (None, _MAP_FAILED):
        return None
    frequency: int = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)()
    return frequency
