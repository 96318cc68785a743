"""What a guest may lose and meet: read from the policy and the options, and said in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import parse_register
from proxy.cli.options.judging import policy_of
from proxy.errors import ConfigError
from proxy.policy.acceptance import Acceptance
from proxy.policy.policy_file import load_policy
from proxy.policy.policy_words import in_words

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.policy.policy import Policy

DFR0 = parse_register("ID_AA64DFR0_EL1")


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def loaded(path: Path, text: str) -> Policy:
    path.write_text(f"schema_version = 1\n[accept]\n{text}\n", encoding="utf-8")
    return load_policy(path)


def test_nothing_is_accepted_unless_it_is_named(policy_file: Path) -> None:
    accept = loaded(policy_file, "").accept
    assert accept == Acceptance()
    assert not accept.loss(DFR0, "DebugVer")
    assert not accept.erratum("Arm 832075")


def test_what_is_named_is_accepted(policy_file: Path) -> None:
    policy = loaded(policy_file, 'lost_features = ["id_aa64dfr0_el1.DebugVer"]\nerrata = ["arm 832075"]')
    assert policy.accept.loss(DFR0, "DebugVer")
    assert not policy.accept.loss(DFR0, "PMUVer")
    assert policy.accept.erratum("Arm 832075")
    more = policy_of(policy, loss=("ID_AA64DFR0_EL1.PMUVer",), erratum=("any",)).accept
    assert more.loss(DFR0, "DebugVer")
    assert more.loss(DFR0, "PMUVer")
    assert more.erratum("Arm 834220")


def test_anything_can_be_accepted(policy_file: Path) -> None:
    accept = loaded(policy_file, 'lost_features = ["any"]\nerrata = ["any"]').accept
    assert accept.loss(DFR0, "DebugVer")
    assert accept.erratum("Arm 832075")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('lost_features = ["ID_AA64DFR0_EL1"]', ":3: accept.lost_features: 'ID_AA64DFR0_EL1' names no field"),
        ('lost_features = ["ID_AA64DFR0_EL1.Debug"]', "has no field 'Debug'; did you mean DebugVer"),
        ('lost_features = ["SCTLR_EL1.M"]', "not an invariant register"),
        ('errata = ["Arm 832076"]', ":3: accept.errata: no erratum 'Arm 832076' is known; did you mean"),
        ('errata = ["any", "Arm 832075"]', "no erratum 'any' is known"),
    ],
)
def test_what_does_not_exist_is_named(policy_file: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(policy_file, text)
    assert says in str(caught.value)


def test_words(policy_file: Path) -> None:
    text = "\n".join(in_words(loaded(policy_file, 'lost_features = ["ID_AA64DFR0_EL1.DebugVer"]')))
    assert "A guest may lose, beside fields that a rule above names: ID_AA64DFR0_EL1.DebugVer." in text
    assert "may meet these errata: none." in text
    text = "\n".join(in_words(loaded(policy_file, 'lost_features = ["any"]\nerrata = ["any"]')))
    assert text.count("RISK") == 2
