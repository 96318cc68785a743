"""What a guest finds of PSCI, by version."""

import pytest

from formats.arm.psci import PSCI_VERSION, lost_calls, version_text
from formats.arm.sysreg import describe


def test_the_register() -> None:
    assert describe(PSCI_VERSION).name == "KVM_REG_ARM_PSCI_VERSION"


@pytest.mark.parametrize(("value", "text"), [(0x10003, "1.3"), (0x2, "0.2"), (0x10000, "1.0")])
def test_versions(value: int, text: str) -> None:
    assert version_text(value) == text


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        (0x10003, 0x10001, ["SYSTEM_OFF2 (to hibernate)"]),
        (0x10003, 0x10000, ["SYSTEM_RESET2 (a warm reset)", "SYSTEM_OFF2 (to hibernate)"]),
        (0x10001, 0x10003, []),
        (0x10002, 0x10001, []),
        (0x10000, 0x2, ["PSCI_FEATURES and SYSTEM_SUSPEND"]),
    ],
)
def test_what_is_lost_between_two(old: int, new: int, lost: list[str]) -> None:
    assert lost_calls(old, new) == lost
