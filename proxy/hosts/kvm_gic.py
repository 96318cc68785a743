"""The interrupt controllers of this host's KVM, asked in a scratch VM: GICv3 and its ITS, and whether there is a GICv2.

Source: Linux `include/uapi/linux/kvm.h`, `arch/arm64/include/uapi/asm/kvm.h` and
`Documentation/virt/kvm/devices/arm-vgic-v3.rst`, `arm-vgic-its.rst`.
"""

import array
import errno
import fcntl
import os
import struct
from contextlib import ExitStack
from typing import Final

from formats.arm.gic import HOST_BITS, ICC_CTLR_EL1, its_revision
from formats.arm.id_fields import fields_of
from proxy.hosts.interrupts import HostInterrupts
from proxy.hosts.kvm import ScratchVcpu
from proxy.hosts.taken import TakenField

_CREATE_DEVICE: Final = 0xC00C_AEE0
_SET_DEVICE_ATTR: Final = 0x4018_AEE1
_GET_DEVICE_ATTR: Final = 0x4018_AEE2
_TEST: Final = 1
_VGIC_V2, _VGIC_V3, _VGIC_ITS = 5, 7, 8

_GROUP_ADDR, _GROUP_CTRL, _GROUP_CPU_SYSREGS, _GROUP_ITS_REGS = 0, 4, 6, 8
_CTRL_INIT: Final = 0
_ADDR_ITS: Final = 4
_ITS_PLACE: Final = 0x0808_0000
"""As on QEMU's virt; nothing else is in the scratch VM."""
_ICC_CTLR: Final = ICC_CTLR_EL1 & 0xFFFF
"""Of the vCPU with affinity 0."""
_GITS_IIDR: Final = 4
_REVISION_BITS: Final = 0xF000


def probe_interrupts(vcpu: ScratchVcpu) -> HostInterrupts:
    """Ask which interrupt controllers KVM has, what their registers say and which other values it takes.

    Args:
        vcpu: A scratch vCPU; its VM gets a GICv3, whose limits are lowered by what is tried.
    """
    versions = tuple(
        version for version, kind in ((2, _VGIC_V2), (3, _VGIC_V3)) if _device(vcpu.vm, kind, _TEST) is not None
    )
    if 3 not in versions:
        return HostInterrupts(versions)
    with ExitStack() as opened:
        gic = _device(vcpu.vm, _VGIC_V3)
        if gic is None:
            return HostInterrupts(versions)
        opened.callback(os.close, gic)
        its = _device(vcpu.vm, _VGIC_ITS)
        if its is not None:
            opened.callback(os.close, its)
        _takes(gic, _GROUP_CTRL, _CTRL_INIT, None)
        own = _get(gic, _GROUP_CPU_SYSREGS, _ICC_CTLR)
        return HostInterrupts(
            versions,
            None if own is None else own & HOST_BITS,
            () if own is None else _taken(gic, own),
            None if its is None else _revisions(its),
        )


def _taken(gic: int, own: int) -> tuple[TakenField, ...]:
    """Try the other values of each field of ICC_CTLR_EL1.

    A value that is taken becomes the limit: KVM takes fewer bits than before, never more again. So higher values come
    first, and a field that was lowered stays so while the next is tried.
    """
    found = []
    for part in fields_of(ICC_CTLR_EL1):
        if not part.mask & HOST_BITS:
            continue
        present = (own & part.mask) >> part.low
        most = (1 << part.width) - 1
        took = []
        for value in (*range(most, present, -1), *range(present - 1, -1, -1)):
            wanted = own & ~part.mask | value << part.low
            if _takes(gic, _GROUP_CPU_SYSREGS, _ICC_CTLR, wanted):
                took.append(value)
        if took:
            own = own & ~part.mask | min(took) << part.low
            found.append(TakenField(part.name, part.low, part.width, frozenset(took)))
    return tuple(found)


def _revisions(its: int) -> tuple[int, ...]:
    """Try which revisions of its tables' layout an ITS takes: bits 15:12 of GITS_IIDR."""
    _takes(its, _GROUP_ADDR, _ADDR_ITS, _ITS_PLACE)
    _takes(its, _GROUP_CTRL, _CTRL_INIT, None)
    own = _get(its, _GROUP_ITS_REGS, _GITS_IIDR)
    if own is None:
        return ()
    candidates = [own & ~_REVISION_BITS | revision << 12 for revision in range(16)]
    return tuple(its_revision(one) for one in candidates if _takes(its, _GROUP_ITS_REGS, _GITS_IIDR, one))


def _device(vm: int, kind: int, flags: int = 0) -> "int | None":
    """Create a device; return its descriptor, 0 for a mere test, None where KVM has none."""
    request = bytearray(struct.pack("=III", kind, 0, flags))
    try:
        fcntl.ioctl(vm, _CREATE_DEVICE, request)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EEXIST):
            return None
        raise
    descriptor: int = struct.unpack("=III", request)[1]
    return descriptor


def _get(device: int, group: int, attribute: int) -> "int | None":
    value = array.array("Q", [0])
    try:
        _attribute(_GET_DEVICE_ATTR, device, group, attribute, value)
    except OSError:
        return None
    return value[0]


def _takes(device: int, group: int, attribute: int, value: "int | None") -> bool:
    """Try to set an attribute; tell whether KVM takes the value."""
    try:
        _attribute(_SET_DEVICE_ATTR, device, group, attribute, None if value is None else array.array("Q", [value]))
    except OSError:
        return False
    return True


def _attribute(request: int, device: int, group: int, attribute: int, value: "array.array[int] | None") -> None:
    address = 0 if value is None else value.buffer_info()[0]
    fcntl.ioctl(device, request, struct.pack("=IIQQ", 0, group, attribute, address))
