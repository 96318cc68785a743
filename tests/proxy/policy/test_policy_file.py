"""The policy file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from formats.arm.processor_sets import parse_processors
from formats.arm.sysreg import MIDR_EL1, parse_register
from proxy.errors import ConfigError
from proxy.policy.policy import DEFAULT_RULES, Mode, Policy
from proxy.policy.policy_file import load_policy
from proxy.policy.rules import RuleAction
from tests.proxy.helpers import REVIDR_EL1

if TYPE_CHECKING:
    from pathlib import Path


def load(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return load_policy(path)


def listed(policy: Policy, action: RuleAction) -> dict[int, str]:
    """Return where each register with a rule of that kind was listed."""
    return {register: rule.where for register, (rule,) in policy.rules.by_register.items() if rule.action is action}


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
    assert [one.sources for one in policy.whitelist] == [(parse_processors("0x411fd070"),), (None,)]
    assert {one.where for one in policy.whitelist} == {f"{path}:5: whitelist.midr"}
    assert listed(policy, RuleAction.SWAP) == dict.fromkeys((REVIDR_EL1, MIDR_EL1), f"{path}:7: registers.swap")


def test_the_least_policy_lets_nobody_come(tmp_path: Path) -> None:
    policy = load(tmp_path, "schema_version = 1")
    assert policy.whitelist == ()
    assert policy.mode is Mode.REPAIR
    assert policy.rules == DEFAULT_RULES
    assert listed(policy, RuleAction.SWAP).keys() == {MIDR_EL1}


def test_an_empty_swap_list_lets_nothing_change(tmp_path: Path) -> None:
    assert load(tmp_path, "schema_version = 1\nregisters.swap = []").rules.by_register == {}


def test_nothing_is_left_out_but_what_is_harmless_when_nothing_is_said(tmp_path: Path) -> None:
    policy = load(tmp_path, "schema_version = 1")
    assert (listed(policy, RuleAction.DROP), policy.drop_harmless) == ({}, True)


def test_what_may_be_left_out(tmp_path: Path) -> None:
    policy = load(
        tmp_path,
        """
        schema_version = 1
        [registers]
        drop = ["actlr_el1", "CNTPCT_EL0", "CCSIDR_EL1[3]", "0x603000000013ffff", "TCR2_EL1"]
        drop_harmless = false
        """,
    )
    names = ("ACTLR_EL1", "CNTPCT_EL0", "CCSIDR_EL1[3]", "0x603000000013ffff", "TCR2_EL1")
    where = f"{tmp_path / 'policy.toml'}:4: registers.drop"
    assert listed(policy, RuleAction.DROP) == {parse_register(name): where for name in names}
    assert policy.drop_harmless is False
    assert listed(policy, RuleAction.SWAP).keys() == {MIDR_EL1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "policy.toml:1: schema_version: it is missing; write schema_version = 1 at the top of the file"),
        ("mode = 'blind'\nschema_version = 2", "policy.toml:2: schema_version: version 2 needs a newer vmstate-proxy;"),
        ("schema_version = 2", "reads version 1"),
        ("schema_version = 0", "policy.toml:1: schema_version: it has to be 1, the version that vmstate-proxy"),
        ("schema_version = '1'", "policy.toml:1: schema_version: it has to be 1,"),
        ("schema_version = true", "policy.toml:1: schema_version: it has to be 1,"),
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
        (
            "schema_version = 1\nregisters.drop = ['ACTLR_EL']",
            "registers.drop: unknown register 'ACTLR_EL'; did you mean",
        ),
        ("schema_version = 1\nregisters.drop = 'ACTLR_EL1'", "registers.drop"),
        ("schema_version = 1\nregisters.drop = [0x603000000013c081]", "registers.drop"),
        (
            "schema_version = 1\nregisters.drop = ['KVM_REG_ARM_PSCI_VERSION']",
            "registers.drop: KVM_REG_ARM_PSCI_VERSION",
        ),
        ("schema_version = 1\nregisters.drop = ['0x6030000000160002']", "registers.drop: KVM_REG_ARM_VENDOR_HYP_BMAP"),
        ("schema_version = 1\nregisters.drop_harmless = 'no'", "drop_harmless"),
        ("schema_version = 1\nregisters.drop_harmless = 0", "drop_harmless"),
        ("schema_version = 1\ndrop_harmless = false", "drop_harmless"),
        ("schema_version = 1\nregisters.drops = []", "drops"),
        ("schema_version = \n", "line 1"),
    ],
)
def test_a_bad_policy_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "policy.toml"))
    assert says in str(caught.value)
