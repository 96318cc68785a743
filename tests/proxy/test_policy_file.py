"""The policy file, and the words of a whitelist."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from formats.sysreg import MIDR_EL1
from proxy.errors import ConfigError
from proxy.policy import DEFAULT_SWAP, Mode, Policy
from proxy.policy_file import load_policy
from proxy.words import invariant_register, parse_midr
from tests.proxy.helpers import R0, REVIDR_EL1

if TYPE_CHECKING:
    from pathlib import Path


def load(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return load_policy(path)


def test_a_whole_policy(tmp_path: Path) -> None:
    policy = load(
        tmp_path,
        """
        schema_version = 1
        mode = "blind"
        [whitelist]
        midr = ["0x411fd070", "none"]
        [registers]
        swap = ["revidr_el1", "0x603000000013c000"]
        """,
    )
    path = str(tmp_path / "policy.toml")
    assert policy.mode is Mode.BLIND
    assert policy.whitelist.keys() == {R0, None}
    assert policy.swap.keys() == {REVIDR_EL1, MIDR_EL1}
    assert all(path in where for where in (*policy.whitelist.values(), *policy.swap.values()))


def test_the_least_policy_lets_nobody_come(tmp_path: Path) -> None:
    policy = load(tmp_path, "schema_version = 1")
    assert policy.whitelist == {}
    assert policy.mode is Mode.REPAIR
    assert policy.swap.keys() == DEFAULT_SWAP.keys() == {MIDR_EL1}


def test_an_empty_swap_list_lets_nothing_change(tmp_path: Path) -> None:
    assert load(tmp_path, "schema_version = 1\nregisters.swap = []").swap == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "schema_version"),
        ("schema_version = 2", "schema_version"),
        ("schema_version = 1\nmodes = 'repair'", "modes"),
        ("schema_version = 1\nmode = 'bold'", "mode"),
        ("schema_version = 1\nwhitelist = ['0x411fd070']", "whitelist"),
        ("schema_version = 1\nwhitelist.midr = '0x411fd070'", "whitelist.midr"),
        ("schema_version = 1\nwhitelist.midr = [0x411fd070]", "whitelist.midr"),
        ("schema_version = 1\nwhitelist.midrs = []", "midrs"),
        ("schema_version = 1\nwhitelist.midr = ['411fd07z']", "whitelist.midr: '411fd07z'"),
        ("schema_version = 1\nwhitelist.midr = ['0x0']", "whitelist.midr"),
        ("schema_version = 1\nwhitelist.midr = ['0x1411fd070']", "whitelist.midr"),
        ("schema_version = 1\nregisters.swap = ['MIDR_EL']", "registers.swap: unknown register 'MIDR_EL'"),
        ("schema_version = 1\nregisters.swap = ['MIDR_EL']", "did you mean MIDR_EL1"),
        ("schema_version = 1\nregisters.swap = ['SCTLR_EL1']", "registers.swap: SCTLR_EL1"),
        ("schema_version = 1\nregisters.swap = ['KVM_REG_ARM_PSCI_VERSION']", "registers.swap: KVM_REG_ARM_PSCI"),
        ("schema_version = 1\nregisters.swap = ['0x603000000013ffff']", "registers.swap"),
        ("schema_version = \n", "line 1"),
    ],
)
def test_a_bad_policy_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "policy.toml"))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "midr"), [("0x411fd070", R0), (" 0x411FD070 ", R0), ("none", None), ("None", None), (str(R0), R0)]
)
def test_whitelist_words(text: str, midr: int | None) -> None:
    assert parse_midr(text, "here") == midr


@pytest.mark.parametrize("text", ["", "any", "0x", "-1", "0", "0x100000000", "0x411fd07g", "*", "9" * 5000])
def test_bad_whitelist_words(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: "):
        parse_midr(text, "here")


@pytest.mark.parametrize("name", ["MIDR_EL1", "REVIDR_EL1", "CTR_EL0", "CCSIDR_EL1[2]", "ID_AA64MMFR0_EL1"])
def test_invariant_registers_may_be_listed(name: str) -> None:
    assert invariant_register(name, "here") == invariant_register(name.lower(), "here")


@pytest.mark.parametrize("name", ["TTBR0_EL1", "KVM_REG_ARM_STD_BMAP", "CNTVCT_EL0", "0x6030000000140001"])
def test_guest_state_and_firmware_may_not_be_listed(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: .*never swapped"):
        invariant_register(name, "here")
