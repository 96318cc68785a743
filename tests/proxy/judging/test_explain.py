"""What a swap of a register without fields means for the guest."""

from __future__ import annotations

import pytest

from formats.arm.sysreg import parse_register
from proxy.judging.explain import what_the_guest_sees
from proxy.judging.verdict import Action, Verdict


@pytest.mark.parametrize(
    ("name", "action", "old", "new", "says"),
    [
        (
            "MIDR_EL1",
            Action.SWAP,
            0x411FD070,
            0x411FD073,
            "the swap is not what the guest sees: it reads the processor's own ",
        ),
        ("KVM_REG_ARM_PSCI_VERSION", Action.SWAP, 0x10003, 0x10001, "the guest will find 0x10001 in place of 0x10003"),
        ("KVM_REG_ARM_PSCI_VERSION", Action.SWAP, 0x10003, None, ""),
    ],
)
def test_what_the_guest_sees(name: str, action: Action, old: int, new: int | None, says: str) -> None:
    said = what_the_guest_sees(Verdict(0, parse_register(name), action, old, new, "a rule")) or ""
    assert said.startswith(says)
    assert bool(said) == bool(says)
