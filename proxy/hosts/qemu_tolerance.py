"""What a destination's QEMU takes although its KVM does not: registers that the host lacks, from QEMU 11.1 on.

QEMU 11.1 passes over a missing register that it knows to be harmless, where older ones refuse the list. Tried with
QEMU 11.1.3 on Linux 7.2, neoverse-v1: a guest from Linux 6.12, which lists these three, loads as it is.
"""

from typing import Final

from formats.arm.sysreg import parse_register
from proxy.hosts.qemu import version_of

_SINCE: Final = (11, 1)
_TOLERATED: Final = frozenset(map(parse_register, ("TCR2_EL1", "PIR_EL1", "PIRE0_EL1")))


def tolerated(qemu: str | None) -> frozenset[int]:
    """Return the registers that a QEMU may find missing on its host, by id.

    Args:
        qemu: Its version, such as `11.1.3`; None when it is not known, which is taken for an old one.
    """
    version = version_of(qemu)
    return _TOLERATED if version is not None and version >= _SINCE else frozenset()
