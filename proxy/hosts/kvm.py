"""/dev/kvm by ioctl: what a vCPU of this host has, and what its KVM lets be written. arm64 only, Python only.

Every question is asked of a scratch VM that no guest runs in. Source: Linux `include/uapi/linux/kvm.h`,
`arch/arm64/include/uapi/asm/kvm.h`, `Documentation/virt/kvm/api.rst`.
"""

import array
import enum
import errno
import fcntl
import os
import platform
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from formats.arm.sysreg import size_of
from proxy.errors import ProxyError

KVM_DEVICE: Final = "/dev/kvm"

_KVMIO: Final = 0xAE
_WRITE, _READ = 1, 2


def _ioctl_number(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | _KVMIO << 8 | number


_GET_API_VERSION: Final = _ioctl_number(0, 0x00, 0)
_CREATE_VM: Final = _ioctl_number(0, 0x01, 0)
_CHECK_EXTENSION: Final = _ioctl_number(0, 0x03, 0)
_CREATE_VCPU: Final = _ioctl_number(0, 0x41, 0)
_GET_ONE_REG: Final = _ioctl_number(_WRITE, 0xAB, 16)
_SET_ONE_REG: Final = _ioctl_number(_WRITE, 0xAC, 16)
_ARM_VCPU_INIT: Final = _ioctl_number(_WRITE, 0xAE, 32)
_ARM_PREFERRED_TARGET: Final = _ioctl_number(_READ, 0xAF, 32)
_GET_REG_LIST: Final = _ioctl_number(_WRITE | _READ, 0xB0, 8)
_ARM_GET_REG_WRITABLE_MASKS: Final = _ioctl_number(_READ, 0xB6, 64)
_ARM_VCPU_FINALIZE: Final = _ioctl_number(_WRITE, 0xC2, 4)

_API_VERSION: Final = 12
_CAP_ARM_VM_IPA_SIZE: Final = 165
_MOST_REGISTERS: Final = 4096
_COPROC_MASK: Final = 0x0FFF_0000
_CORE: Final = 0x0010_0000
_SVE: Final = 0x0015_0000
_SVE_VECTOR_LENGTHS: Final = 0x6060_0000_0015_FFFF
_SVE_QUADWORDS: Final = 512
"""Bits of KVM_REG_ARM64_SVE_VLS: bit n stands for vectors of n + 1 quadwords."""
_ID_SPACE: Final = 3 * 8 * 8
"""Registers that KVM_ARM_GET_REG_WRITABLE_MASKS tells of: op0 3, op1 {0, 1, 3}, CRn 0, CRm 0 to 7, op2 0 to 7."""


class Feature(enum.Enum):
    """What a vCPU can be created with: its bit in `kvm_vcpu_init.features`, and the KVM capability it needs."""

    PSCI_0_2 = (2, 102)
    EL1_32BIT = (1, 93)
    PMU_V3 = (3, 126)
    SVE = (4, 170)
    PTRAUTH_ADDRESS = (5, 171)
    PTRAUTH_GENERIC = (6, 172)

    @property
    def bit(self) -> int:
        """The feature's bit."""
        return self.value[0]

    @property
    def capability(self) -> int:
        """The KVM_CAP_* that says that the host has it."""
        return self.value[1]


QEMU_HOST_FEATURES: Final = frozenset(
    {Feature.PSCI_0_2, Feature.PMU_V3, Feature.SVE, Feature.PTRAUTH_ADDRESS, Feature.PTRAUTH_GENERIC}
)
"""What QEMU gives a vCPU of `-cpu host`, as far as the host has it (QEMU `target/arm/kvm.c`, `kvm_arch_init_vcpu`)."""


class KvmError(ProxyError):
    """There is no arm64 KVM here, or it does not do what it is asked."""


class ScratchVcpu:
    """A vCPU that never runs, in a scratch VM. Get it from `scratch_vcpu`.

    Attributes:
        features: What it was created with.
        vm: The descriptor of its VM.
    """

    def __init__(self, vm: int, vcpu: int, features: frozenset[Feature]) -> None:
        self.features = features
        self.vm = vm
        self._vcpu = vcpu

    def registers(self) -> list[int]:
        """Return the ids that QEMU would put into a `cpu` section, ascending: all but KVM's core and SVE registers."""
        found = array.array("Q", [_MOST_REGISTERS] + [0] * _MOST_REGISTERS)
        fcntl.ioctl(self._vcpu, _GET_REG_LIST, found)
        ids = found[1 : 1 + found[0]]
        return sorted(id_ for id_ in ids if id_ & _COPROC_MASK not in (_CORE, _SVE))

    def get(self, register: int) -> int:
        """Return a register's value.

        Raises:
            OSError: KVM does not give it out; the errno is KVM's.
        """
        value = array.array("Q", [0])
        self._one_register(_GET_ONE_REG, register, value)
        return value[0] & ((1 << 8 * size_of(register)) - 1)

    def set(self, register: int, value: int) -> int:
        """Try to write a register.

        Returns:
            0 when KVM takes the value; otherwise the errno: EINVAL for a value that it does not take, ENOENT for a
            register that it does not have.
        """
        try:
            self._one_register(_SET_ONE_REG, register, array.array("Q", [value]))
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def taken(self, register: int, values: Iterable[int]) -> list[int]:
        """Try to write a register with one value after the other; return those that KVM takes."""
        value = array.array("Q", [0])
        request = struct.pack("=QQ", register, value.buffer_info()[0])
        took = []
        for value[0] in values:
            try:
                fcntl.ioctl(self._vcpu, _SET_ONE_REG, request)
            except OSError:
                continue
            took.append(value[0])
        return took

    def sve_vector_lengths(self) -> tuple[int, ...]:
        """Return the lengths of SVE vectors that the vCPU can have, in bytes, ascending; none without SVE."""
        if Feature.SVE not in self.features:
            return ()
        lengths = array.array("Q", [0] * (_SVE_QUADWORDS // 64))
        self._one_register(_GET_ONE_REG, _SVE_VECTOR_LENGTHS, lengths)
        return tuple(16 * (bit + 1) for bit in range(_SVE_QUADWORDS) if lengths[bit // 64] >> bit % 64 & 1)

    def writable_masks(self) -> dict[int, int] | None:
        """Return which bits of each register of the ID space may be written; None before Linux 6.7.

        A value may differ from the host's in these bits; whether it may be higher is another matter.
        """
        masks = array.array("Q", [0] * _ID_SPACE)
        request = struct.pack("=QI52x", masks.buffer_info()[0], 0)
        try:
            fcntl.ioctl(self.vm, _ARM_GET_REG_WRITABLE_MASKS, request)
        except OSError:
            return None
        found = {}
        for index, mask in enumerate(masks):
            op1, crm, op2 = (0, 1, 3)[index >> 6], index >> 3 & 7, index & 7
            found[0x6030_0000_0013_0000 | 3 << 14 | op1 << 11 | crm << 3 | op2] = mask
        return found

    def _one_register(self, request: int, register: int, value: "array.array[int]") -> None:
        fcntl.ioctl(self._vcpu, request, struct.pack("=QQ", register, value.buffer_info()[0]))


@contextmanager
def scratch_vcpu(features: Iterable[Feature] | None = None) -> Iterator[ScratchVcpu]:
    """Create a VM with one vCPU, for as long as the block lasts.

    Args:
        features: What the vCPU is to have; None for what QEMU's `-cpu host` would give it here.

    Raises:
        KvmError: There is no arm64 KVM, it is not accessible, lacks a feature, or failed within the block.
    """
    with ExitStack() as opened, _named():
        kvm = _open_kvm()
        opened.callback(os.close, kvm)
        offered = {feature for feature in Feature if fcntl.ioctl(kvm, _CHECK_EXTENSION, feature.capability) > 0}
        if features is None:
            wanted = QEMU_HOST_FEATURES & offered
        else:
            wanted = frozenset(features)
            missing = ", ".join(sorted(feature.name for feature in wanted - offered))
            if missing:
                raise KvmError(f"this host's KVM does not have the vCPU features {missing}")
        vm = fcntl.ioctl(kvm, _CREATE_VM, fcntl.ioctl(kvm, _CHECK_EXTENSION, _CAP_ARM_VM_IPA_SIZE))
        opened.callback(_close_aside, vm)
        vcpu = fcntl.ioctl(vm, _CREATE_VCPU, 0)
        opened.callback(os.close, vcpu)
        target = bytearray(32)
        fcntl.ioctl(vm, _ARM_PREFERRED_TARGET, target)
        struct.pack_into("=I", target, 4, sum(1 << feature.bit for feature in wanted))
        fcntl.ioctl(vcpu, _ARM_VCPU_INIT, bytes(target))
        if Feature.SVE in wanted:
            fcntl.ioctl(vcpu, _ARM_VCPU_FINALIZE, struct.pack("=i", Feature.SVE.bit))
        yield ScratchVcpu(vm, vcpu, wanted)


def _close_aside(vm: int) -> None:
    """Close the last descriptor of a VM, for which Linux 7.2 takes 0.2 s on an emulated neoverse-v1."""
    threading.Thread(target=os.close, args=(vm,)).start()


@contextmanager
def _named() -> Iterator[None]:
    """Turn what an ioctl answers into an error for the operator."""
    try:
        yield
    except OSError as error:
        raise KvmError(f"{KVM_DEVICE}: a scratch vCPU cannot be asked: {error.strerror}") from error


def _open_kvm() -> int:
    machine = platform.machine()
    if machine not in ("aarch64", "arm64"):
        raise KvmError(f"this is a machine of architecture {machine}; only an arm64 host's KVM knows arm64 registers")
    try:
        kvm = os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        advice = {
            errno.ENOENT: "is KVM in the kernel, and was the kernel entered at EL2?",
            errno.EACCES: "run as root, or as a member of the group kvm",
        }.get(error.errno or 0, "")
        raise KvmError(f"{KVM_DEVICE}: {error.strerror}" + (f"; {advice}" if advice else "")) from error
    version = fcntl.ioctl(kvm, _GET_API_VERSION, 0)
    if version != _API_VERSION:
        os.close(kvm)
        raise KvmError(f"{KVM_DEVICE}: API version {version}; {_API_VERSION} is the one that is known")
    return kvm
