"""`policy init` and `policy check`, the long rules of a policy, and what they let the judge do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1, parse_register
from proxy.errors import ConfigError, RefusedError
from proxy.hosts.profile import HostProfile
from proxy.judging.judge import Judge
from proxy.judging.verdict import Action, Verdict
from proxy.policy.policy import DEFAULT_RULES, Mode, Policy
from proxy.policy.policy_file import load_policy
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import R0, R3, ROOT, capture, profile, registers, without_vmdesc

if TYPE_CHECKING:
    from pathlib import Path

DFR0 = parse_register("ID_AA64DFR0_EL1")
WORKAROUND_1 = parse_register("KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1")
HOST = HostProfile("made up", {MIDR_EL1: R3, DFR0: 0x10305406, WORKAROUND_1: 0}, frozenset())
SAME = dict(HOST.values)
HEAD = "schema_version = 1\n"


def policy(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", "policy", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def load(tmp_path: Path, text: str) -> Policy:
    path = tmp_path / "policy.toml"
    path.write_text(HEAD + text)
    return load_policy(path)


def one_verdict(rules: Policy, register: int, value: int, host: HostProfile = HOST) -> Verdict:
    (found,) = Judge(rules, host).judge(registers(SAME | {register: value}))
    return found


# --- the commands


def test_the_example_is_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    assert policy("init", path).returncode == 0
    assert policy("init").stdout == path.read_text()
    done = policy("check", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "never lowered\n" in done.stdout
    # It vouches for nothing that is not vouched for without it.
    loaded = load_policy(path)
    assert (loaded.whitelist, loaded.accept, loaded.require) == ((), Policy().accept, Policy().require)
    assert loaded.rules.by_register.keys() == DEFAULT_RULES.by_register.keys()


def test_what_is_commented_out_in_the_example_works_too(tmp_path: Path) -> None:
    text = policy("init").stdout
    optional = (
        *("# [[", "# from", "# to = ", "# registers", "# fields", "# action", "# reason", "# processors = "),
        *("# device_state_mib", "# machines"),
    )
    lines = [line.removeprefix("# ") if line.startswith(optional) else line for line in text.splitlines()]
    path = tmp_path / "policy.toml"
    path.write_text("\n".join(lines))
    loaded = load_policy(path)
    assert len(loaded.whitelist) == 2
    assert loaded.require.device_state_limit == 64 << 20
    said = policy("check", path).stdout
    assert "each of these to each: Broadcom Vulcan, any revision, Cavium ThunderX2, any revision" in said
    assert f"{path}:21: whitelist.sets[0]: ThunderX2, before and after it was renamed" in said
    assert "ID_AA64DFR0_EL1.DebugVer may take the destination's value" in said
    assert "but where a rule above names them" in said


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("mine")
    done = policy("init", path)
    assert (done.returncode, path.read_text()) == (2, "mine")
    assert "it is there already" in done.stderr


def test_a_wrong_policy_is_told_by_line(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(HEAD + "\n[whitelist]\nmdir = []\n")
    done = policy("check", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"vmstate-proxy: {path}:4: whitelist.mdir: there is no such key\n"


# --- whitelist


@pytest.mark.parametrize(
    ("source", "destination", "allowed"),
    [
        (0x420F5161, 0x431F0AF1, True),
        (0x431F0AF1, 0x420F5161, True),
        (0x420F5161, R3, False),
        (R0, R3, True),
        (R3, R0, False),
        (0x411FD072, 0x411FD074, False),
    ],
)
def test_sets_both_ways_and_one_way(tmp_path: Path, source: int, destination: int, *, allowed: bool) -> None:
    rules = load(
        tmp_path,
        """
        [[whitelist.sets]]
        processors = ["0x42:0x516", "cavium thunderx2"]
        [[whitelist.sets]]
        reason = "nothing to lose"
        from = ["cortex-a57 r1p0..r1p2"]
        to = ["cortex-a57 r1p3"]
        """,
    )
    host = replace(HOST, values=HOST.values | {MIDR_EL1: destination})
    found = one_verdict(rules, MIDR_EL1, source, host)
    assert found.action is (Action.SWAP if allowed else Action.REFUSE)
    if source == R0:
        assert found.rule == f"{tmp_path}/policy.toml:5: whitelist.sets[1] 0x411fd070: nothing to lose"


# --- rules


def test_a_rule_for_a_field_covers_that_field_alone(tmp_path: Path) -> None:
    rules = load(
        tmp_path,
        '[[rule]]\nregisters = ["ID_AA64DFR0_EL1"]\nfields = ["DebugVer"]\naction = "swap"\nreason = "why not"',
    )
    found = one_verdict(rules, DFR0, 0x10305408)
    assert (found.action, found.rule) == (Action.SWAP, f"{tmp_path}/policy.toml:2: rule[0]: why not")
    found = one_verdict(rules, DFR0, 0x10305508)
    assert found.action is Action.REFUSE
    assert found.rule.endswith("the policy does not list PMUVer")


def test_refuse_holds_although_the_destination_would_take_it(tmp_path: Path) -> None:
    rules = load(tmp_path, '[[rule]]\nregisters = ["ID_AA64DFR0_EL1"]\nfields = ["PMUVer"]\naction = "refuse"')
    host = replace(HOST, writable={DFR0: 0xF0F})
    assert one_verdict(rules, DFR0, 0x10305404, host).action is Action.ACCEPT
    assert one_verdict(rules, DFR0, 0x10305306, host).action is Action.REFUSE
    assert "same on both sides" in one_verdict(rules, DFR0, 0x10305306, host).rule


def test_keep_holds_in_mode_blind(tmp_path: Path) -> None:
    rules = load(tmp_path, 'mode = "blind"\n[[rule]]\nregisters = ["ID_AA64DFR0_EL1"]\naction = "keep"')
    host = replace(HOST, writable={DFR0: 0xF})
    assert one_verdict(rules, DFR0, 0x10305405, host).action is Action.ACCEPT
    assert one_verdict(replace(rules, rules=Policy().rules), DFR0, 0x10305405, host).action is Action.SWAP
    refused = one_verdict(rules, DFR0, 0x10305408, host)
    assert refused.action is Action.REFUSE
    assert "keeps its value" in refused.rule


def test_a_mitigation_is_lowered_by_a_rule_that_names_it_alone(tmp_path: Path) -> None:
    text = f'[[rule]]\nregisters = ["{Verdict(0, WORKAROUND_1, Action.SWAP, 0, 0, "").name}"]\naction = "swap"\n'
    with pytest.raises(ConfigError, match="needs a reason"):
        load(tmp_path, text)
    found = one_verdict(load(tmp_path, text + 'reason = "our own guests"'), WORKAROUND_1, 2)
    assert (found.action, found.new) == (Action.SWAP, 0)
    assert found.rule.endswith(": our own guests")
    for mode in Mode:
        assert one_verdict(Policy(mode=mode), WORKAROUND_1, 2).action is Action.REFUSE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '[[rule]]\nregisters = ["MIDR_EL1"]\naction = "swop"',
            ":4: rule[0].action: 'swop' is none of swap, keep, drop, refuse",
        ),
        (
            '[[rule]]\nregisters = "MIDR_EL1"\naction = "swap"',
            ":3: rule[0].registers: it has to be a list, not a text in quotes",
        ),
        ('[[rule]]\nregisters = ["MIDR_EL"]\naction = "swap"', ":3: rule[0].registers: unknown register 'MIDR_EL'"),
        ('[[rule]]\nregisters = []\naction = "swap"', ":3: rule[0].registers: a rule needs a register"),
        ('[[rule]]\naction = "swap"', ":2: rule[0].registers: it is missing"),
        ('[[rule]]\nregisters = ["SCTLR_EL1"]\naction = "keep"', "the guest's own, and never touched"),
        (
            '[[rule]]\nregisters = ["ID_AA64DFR0_EL1"]\nfields = ["DebugVr"]\naction = "swap"',
            ":4: rule[0].fields: ID_AA64DFR0_EL1 has no field 'DebugVr'; did you mean DebugVer",
        ),
        (
            '[[rule]]\nregisters = ["CTR_EL0", "MIDR_EL1"]\nfields = ["DIC"]\naction = "swap"',
            ":4: rule[0].fields: fields go with one register",
        ),
        (
            'registers.swap = ["CTR_EL0"]\n[[rule]]\nregisters = ["CTR_EL0"]\naction = "refuse"',
            ":3: rule[0]: CTR_EL0 has a rule already, at",
        ),
        (
            '[[rule]]\nregisters = ["CTR_EL0"]\naction = "swap"\n'
            '[[rule]]\nregisters = ["CTR_EL0"]\nfields = ["DIC"]\naction = "refuse"',
            ":5: rule[1]: CTR_EL0 has a rule already, at",
        ),
        ('[[whitelist.sets]]\nprocessors = ["cortex-a57"]\nto = ["cortex-a72"]', ":2: whitelist.sets[0]: give either"),
        ('[[whitelist.sets]]\nfrom = ["cortex-a57"]', ":2: whitelist.sets[0]: give either"),
        ('[[whitelist.sets]]\nprocessors = ["cortex-a75x"]', "did you mean cortex-a75"),
        ('[[whitelist.sets]]\nprocessors = ["none"]', "no core is known"),
        ('whitelist.midr = ["0x1411fd070"]', ":2: whitelist.midr: '0x1411fd070' is no MIDR_EL1 value"),
        ("[require]\ndevice_state_mib = 0", ":3: require.device_state_mib: it goes from 1 to 4096"),
        ('[require]\nmachines = "virt"', ":3: require.machines: it has to be a list"),
        ("[require]\nreturnpath = true", ":3: require.returnpath: there is no such key"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'policy.toml'}:")
    assert says in str(caught.value)


def test_two_fields_of_a_register_may_have_two_rules(tmp_path: Path) -> None:
    rules = load(
        tmp_path,
        '[[rule]]\nregisters = ["CTR_EL0"]\nfields = ["DIC"]\naction = "swap"\n'
        '[[rule]]\nregisters = ["CTR_EL0"]\nfields = ["IDC"]\naction = "refuse"',
    )
    assert len(rules.rules.by_register[parse_register("CTR_EL0")]) == 2


def test_no_option_allows_what_the_policy_forbids(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(HEAD + '[[rule]]\nregisters = ["CTR_EL0"]\naction = "refuse"\n')
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "check", "x", "--policy", path, "--midr", "1", "--allow-register", "CTR_EL0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert f"--allow-register CTR_EL0: {path}:2: rule[0] says refuse" in done.stderr


# --- requirements


def rewritten(rules: Policy, stream: bytes) -> None:
    rewriter = Rewriter(Judge(rules, profile("kvm-trixie-a57r3")), live=False)
    rewriter.feed(stream)
    rewriter.end()


@pytest.mark.parametrize("machines", ["virt-7.2", "virt-*", "*"])
def test_a_machine_that_is_listed_may_come(tmp_path: Path, machines: str) -> None:
    rewritten(load(tmp_path, f'require.machines = ["{machines}"]'), capture("kvm-trixie-a57r3"))


def test_a_machine_that_is_not_listed_is_refused_at_once(tmp_path: Path) -> None:
    rules = load(tmp_path, 'require.machines = ["virt-9.*", "pc-*"]')
    rewriter = Rewriter(Judge(rules, profile("kvm-trixie-a57r3")), live=False)
    with pytest.raises(RefusedError, match=r"machine type virt-7\.2, and the policy's require\.machines has virt-9"):
        rewriter.feed(capture("kvm-trixie-a57r3")[:100])


def test_a_vmdesc_can_be_required(tmp_path: Path) -> None:
    rules = load(tmp_path, "require.vmdesc = true")
    rewritten(rules, capture("kvm-trixie-a57r3"))
    with pytest.raises(RefusedError, match=r"require\.vmdesc"):
        rewritten(rules, without_vmdesc(capture("kvm-trixie-a57r3")))


def test_no_return_path_can_be_allowed(tmp_path: Path) -> None:
    for required in (True, False):
        rules = load(tmp_path, f"require.return_path = {str(required).lower()}")
        rewriter = Rewriter(Judge(rules, profile("kvm-trixie-a57r3")), live=True)
        if required:
            with pytest.raises(RefusedError, match="return-path"):
                rewriter.feed(capture("kvm-trixie-a57r3"))
        else:
            rewriter.feed(capture("kvm-trixie-a57r3"))
