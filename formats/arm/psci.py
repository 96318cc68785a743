"""What a guest finds of PSCI, its power management by firmware calls, at each version that KVM emulates."""

from typing import Final

from formats.arm.sysreg import parse_register

PSCI_VERSION: Final = parse_register("KVM_REG_ARM_PSCI_VERSION")
"""Its value: major version in bits 31..16, minor in 15..0. Source: Linux `include/uapi/linux/psci.h`."""

_NEW_CALLS: Final[dict[int, str]] = {
    0x1_0000: "PSCI_FEATURES and SYSTEM_SUSPEND",
    0x1_0001: "SYSTEM_RESET2 (a warm reset)",
    0x1_0003: "SYSTEM_OFF2 (to hibernate)",
}
"""What came with a version, as far as KVM has it.

Source: Linux `arch/arm64/kvm/psci.c` (`kvm_psci_1_x_call`); SYSTEM_OFF2 since 6.13."""


def version_text(value: int) -> str:
    """Return a version as people write it: `1.3`."""
    return f"{value >> 16}.{value & 0xFFFF}"


def lost_calls(old: int, new: int) -> list[str]:
    """Name the calls that a guest was told of with one version, and that another does not have."""
    return [calls for version, calls in _NEW_CALLS.items() if new < version <= old]
