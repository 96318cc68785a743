"""Probing this host: its profile, read from its own KVM by a scratch vCPU. Standard library only, arm64 only."""

import ctypes
import mmap
import os
import platform

from formats.arm.midr import parse_midr_el1
from formats.arm.sysreg import MIDR_EL1
from proxy.hosts.kvm import Feature, scratch_vcpu
from proxy.hosts.profile import HostProfile, host_values

_MAP_FAILED = ctypes.c_void_p(-1).value
_READ_CNTFRQ = bytes.fromhex("00e03bd5 c0035fd6")
"""`mrs x0, cntfrq_el0; ret`: the only way to the timer's frequency that every kernel leaves open to user space."""


def probe_host(features: frozenset[Feature] | None = None) -> HostProfile:
    """Read the registers of a vCPU of this host.

    Args:
        features: What the vCPU is to have; None for what QEMU's `-cpu host` would give it.

    Raises:
        KvmError: There is no arm64 KVM here, or it does not have a feature.
    """
    with scratch_vcpu(features) as vcpu:
        ids = vcpu.registers()
        values = host_values((register, vcpu.get(register)) for register in ids)
        masks = vcpu.writable_masks()
        system = os.uname()
        return HostProfile(
            description=f"probed on {platform.node()}: {parse_midr_el1(values[MIDR_EL1])}",
            values=values,
            others=frozenset(ids) - values.keys(),
            kernel=f"{system.sysname} {system.release}",
            vcpu_features=tuple(sorted(feature.name for feature in vcpu.features)),
            sve_vector_lengths=vcpu.sve_vector_lengths(),
            timer_frequency=timer_frequency(),
            writable=None if masks is None else {id_: mask for id_, mask in masks.items() if id_ in values and mask},
        )


def timer_frequency() -> int | None:
    """Return CNTFRQ_EL0 in Hz; None where no code can be mapped."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    # Through a file, so that the kernel cleans the caches when it maps what was written for execution.
    descriptor = os.memfd_create("cntfrq")
    try:
        os.write(descriptor, _READ_CNTFRQ)
        address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, descriptor, 0)
    finally:
        os.close(descriptor)
    if address in (None, _MAP_FAILED):
        return None
    frequency: int = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)()
    return frequency
