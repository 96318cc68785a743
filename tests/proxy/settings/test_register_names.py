"""The words by which files and options name registers, values and processors."""

from __future__ import annotations

import re

import pytest

from formats.arm.sysreg import MIDR_EL1
from proxy.errors import ConfigError, ExitCode
from proxy.settings.register_names import (
    droppable_register,
    invariant_register,
    one_midr,
    register_id,
    register_value,
)


def test_register_id() -> None:
    assert register_id("midr_el1", "f: k") == MIDR_EL1
    assert register_id("0x603000000013C000", "f: k") == MIDR_EL1
    with pytest.raises(ConfigError, match=r"^f: k: unknown register 'MDIR_EL1'; did you mean .*MIDR_EL1"):
        register_id("MDIR_EL1", "f: k")


@pytest.mark.parametrize(
    ("text", "value"), [("0x10", 16), ("10", 10), ("0", 0), ("0xffffffffffffffff", (1 << 64) - 1), ("0XAB", 0xAB)]
)
def test_register_value(text: str, value: int) -> None:
    assert register_value(text, "f: k") == value


@pytest.mark.parametrize("text", ["", "x", "0x", "1.0", "-1", "0x10000000000000000", "ff", "010", "9" * 5000])
def test_no_register_value(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^f: k: "):
        register_value(text, "f: k")


@pytest.mark.parametrize(
    ("text", "midr"),
    [
        ("0x411fd073", 0x411FD073),
        (" 0x411FD073 ", 0x411FD073),
        ("cortex-a57 r1p3", 0x411FD073),
        ("Arm Neoverse-N1 r4p1", 0x414FD0C1),
        ("altra", 0x413FD0C1),
        ("raspberry pi 5", 0x414FD0B1),
        ("kunpeng-920", 0x481FD010),
        ("0x41:0xd07 r1p0", 0x411FD070),
        # An id without the architecture's 0xf stays as it is written.
        ("0x41070d07", 0x41070D07),
    ],
)
def test_one_processor(text: str, midr: int) -> None:
    assert one_midr(text, "here") == midr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cortex-a57", "'cortex-a57' is Arm Cortex-A57, any revision; say which"),
        ("cortex-a57 r1p0..r1p3", "say which"),
        ("graviton4", "say which"),
        (
            "rk3588",
            "has 2 kinds of core, Cortex-A76 r4p0 and Cortex-A55 r2p0: name the one",
        ),
        ("none", "no core is known as 'none'"),
        ("0", "32 bits"),
        ("0x100000000", "32 bits"),
    ],
)
def test_no_one_processor(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^here: .*{re.escape(says)}"):
        one_midr(text, "here")


@pytest.mark.parametrize("name", ["MIDR_EL1", "REVIDR_EL1", "CTR_EL0", "CCSIDR_EL1[2]", "ID_AA64MMFR0_EL1"])
def test_invariant_registers_may_be_listed(name: str) -> None:
    assert invariant_register(name, "here") == invariant_register(name.lower(), "here")


@pytest.mark.parametrize("name", ["TTBR0_EL1", "KVM_REG_ARM_STD_BMAP", "CNTVCT_EL0", "0x6030000000140001"])
def test_guest_state_and_firmware_may_not_be_listed(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: .*never swapped"):
        invariant_register(name, "here")


@pytest.mark.parametrize(
    "name", ["ACTLR_EL1", "MIDR_EL1", "TTBR0_EL1", "CNTPCT_EL0", "CCSIDR_EL1[2]", "TCR2_EL1", "0x603000000013ffff"]
)
def test_all_but_the_firmware_may_be_left_out(name: str) -> None:
    assert droppable_register(name, "here") == droppable_register(name.upper(), "here") == register_id(name, "here")


@pytest.mark.parametrize(
    "name",
    [
        "KVM_REG_ARM_PSCI_VERSION",
        "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1",
        "KVM_REG_ARM_STD_BMAP",
        "0x6030000000140000",
        "0x6030000000140063",
        "0x6030000000160063",
    ],
)
def test_the_firmware_may_not(name: str) -> None:
    """Whether its name is known or not."""
    with pytest.raises(
        ConfigError, match=r"^here: .* is of kind (firmware|feature_bitmap), and never left out"
    ) as caught:
        droppable_register(name, "here")
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("parse", [register_id, invariant_register, droppable_register])
@pytest.mark.parametrize("name", ["", "ACTLR_EL", "actlr_el", "0x", "0x1g", "42", "0x11111111111111111"])
def test_no_register(parse: object, name: str) -> None:
    assert callable(parse)
    with pytest.raises(ConfigError, match=r"^here: unknown register"):
        parse(name, "here")
