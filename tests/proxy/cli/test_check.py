"""`check`: whether a guest can go, told before it goes."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import parse_register
from proxy.hosts.profile_text import write_profile
from tests import streams
from tests.captures import CAPTURES
from tests.proxy.cli.bad_streams import BROKEN, multifd
from tests.proxy.cli.command_line import SMP2, Result
from tests.proxy.helpers import (
    NEWER,
    NEWER_DROPPED,
    NEWER_SWAPPED,
    OLDER,
    R0,
    R3,
    capture,
    device_state,
    downgraded,
    profile,
    short,
    with_value,
)

if TYPE_CHECKING:
    from collections.abc import Callable


CHECK = ("check", CAPTURES / f"{NEWER}.xz")
ALLOW_SWAPPED = ("--allow-register", ",".join(NEWER_SWAPPED), "--allow-loss", "ID_AA64DFR0_EL1.DebugVer")


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The profile of the host with the older kernel."""
    path = tmp_path / "older.toml"
    path.write_text(write_profile(profile(OLDER)))
    return path


def rows(result: Result) -> dict[str, tuple[str, str, list[str]]]:
    """Return the table: for each register its word, what stands beside it, and the lines under it."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    under: list[str] = []
    for line in result.out.decode().splitlines():
        if line.startswith(" " * 12):
            under.append(line.strip())
        elif match := re.fullmatch(
            r"(accepted|swapped|left out|refused) +(\S+(?: \(vCPU [\d, ]+\))?)(?:  (.+))?", line
        ):
            under = []
            assert match[2] not in found
            found[match[2]] = (match[1], match[3] or "", under)
    return found


def named(result: Result, word: str) -> list[str]:
    return [register for register, row in rows(result).items() if row[0] == word]


def answer(result: Result) -> str:
    """Return the first line; under it, options are listed that would help."""
    return result.out.decode().splitlines()[0]


def options(result: Result) -> list[str]:
    """Return the options that the check says would allow what is refused."""
    _, _, under = result.out.decode().partition("\n  if the guest can do with that:\n")
    lists: dict[str, list[str]] = {}
    for option, names in map(shlex.split, re.findall(r"^    (--.+)$", under, re.MULTILINE)):
        lists.setdefault(option, []).append(names)
    return [word for option, names in lists.items() for word in (option, ",".join(names))]


def test_a_guest_that_can_go_through_the_proxy(run: Callable[..., Result], older: Path) -> None:
    result = run(*CHECK, "--host", older, *ALLOW_SWAPPED)
    assert (result.code, result.err) == (0, "")
    assert named(result, "swapped") == NEWER_SWAPPED
    assert named(result, "left out") == NEWER_DROPPED
    found = rows(result)
    assert len(found) == len(NEWER_SWAPPED) + len(NEWER_DROPPED)
    assert found["ID_AA64DFR0_EL1"] == (
        "swapped", "0x10305408 -> 0x10305406",
        ["DebugVer 8 -> 6", "the guest will read DebugVer 6 instead of 8", "--allow-register"],
    )  # fmt: skip
    assert found["TCR2_EL1"] == (
        "left out",
        "0x0",
        ["the destination has no such register", "harmless: the guest's processor has no FEAT_TCR2"],
    )
    assert answer(result) == (
        "The guest can go through the proxy, with 5 registers swapped and 17 registers left out; directly it is "
        "refused."
    )


def test_a_profile_does_not_tell_the_values_of_what_is_left_out(
    run: Callable[..., Result], tmp_path: Path, older: Path
) -> None:
    (tmp_path / "newer.toml").write_text(write_profile(profile(NEWER)))
    found = rows(run("check", tmp_path / "newer.toml", "--host", older))
    assert found["TCR2_EL1"][:2] == ("left out", "")
    assert found["CCSIDR_EL1[3]"][0] == "left out"
    assert found["CCSIDR_EL1[3]"][1].startswith("0x")


def test_a_guest_that_cannot_go(run: Callable[..., Result], older: Path) -> None:
    result = run(*CHECK, "--host", older)
    assert (result.code, result.err) == (4, "")
    assert named(result, "refused") == NEWER_SWAPPED
    assert named(result, "left out") == NEWER_DROPPED
    assert options(result) == [*ALLOW_SWAPPED]
    assert answer(result) == "The guest cannot go: 5 registers are refused."


def test_a_guest_that_may_go_as_it_is(run: Callable[..., Result], tmp_path: Path, older: Path) -> None:
    result = run("check", CAPTURES / f"{OLDER}.xz", "--host", older)
    assert (result.code, result.err) == (0, "")
    assert result.out == b"The destination takes the guest as it is; no register has to be swapped.\n"
    for kernel, says in (
        ("Linux 6.1.0", "The guest can go through the proxy, with 1 register swapped; directly it is refused."),
        (None, "It is not known whether the destination takes the guest as it is: "),
    ):
        (tmp_path / "newer.toml").write_text(write_profile(replace(profile(NEWER), kernel=kernel)))
        checking = ("check", CAPTURES / f"{OLDER}.xz", "--host", tmp_path / "newer.toml")
        result = run(*checking, "--allow-register", NEWER_SWAPPED[3])
        assert result.code == 0
        assert set(named(result, "accepted")) >= {"CCSIDR_EL1[0]", "CLIDR_EL1"}
        assert named(result, "swapped") == ["ID_AA64DFR0_EL1"]
        assert answer(result).startswith(says)
        as_json = json.loads(run(*checking, "--json").out)
        assert as_json["direct"] is (None if kernel is None else False)


def test_check_says_what_blind_would_change_without_need(
    run: Callable[..., Result], tmp_path: Path, older: Path
) -> None:
    path = tmp_path / "free.toml"
    writable = {parse_register("ID_AA64DFR0_EL1"): 0xF}
    path.write_text(write_profile(replace(profile(NEWER), writable=writable)))
    for source in (CAPTURES / f"{OLDER}.xz", older):
        result = run("check", source, "--host", path)
        assert (result.code, named(result, "swapped")) == (0, [])
        assert answer(result) == "The destination takes the guest as it is; no register has to be swapped."
        result = run("check", source, "--host", path, "--mode", "blind")
        assert result.code == 0
        assert len(named(result, "swapped")) == 5
        assert "no register has to be swapped; through the proxy it goes with 5 registers swapped" in answer(result)


def test_the_summary_is_the_answer_alone(run: Callable[..., Result], older: Path) -> None:
    result = run(*CHECK, "--host", older, "--summary")
    assert (result.code, result.out) == (4, b"The guest cannot go: 5 registers are refused.\n")
    assert run(*CHECK, "--host", older, "--summary", "--json").code == 2


def test_check_of_a_processor_alone_says_that_it_is_no_more(run: Callable[..., Result]) -> None:
    result = run(*CHECK, "--midr", "0x414fd0c1")
    assert result.code == 0
    assert "\nNothing but 1 register was compared" in result.out.decode()
    result = run(*CHECK, "--midr", hex(R3))
    assert result.code == 4
    assert "The guest cannot go: 1 register is refused." in result.out.decode()
    assert "--allow-midr 0x414fd0c1" in result.out.decode()


@pytest.mark.parametrize("source", ["stream", "profile", "-"])
def test_check_json(run: Callable[..., Result], tmp_path: Path, older: Path, source: str) -> None:
    (tmp_path / "newer.toml").write_text(write_profile(profile(NEWER)))
    name = {"stream": str(CHECK[1]), "profile": str(tmp_path / "newer.toml"), "-": "-"}[source]
    before = sorted(os.listdir(tmp_path))
    result = run("check", name, "--host", older, "--json", *ALLOW_SWAPPED, stdin=short(NEWER))
    assert (result.code, result.err) == (0, "")
    found = result.json
    verdicts = found.pop("verdicts")
    same = found.pop("same")
    assert "MIDR_EL1" in same
    assert not {verdict["register"] for verdict in verdicts} & set(same)
    assert found == {
        "schema_version": 1,
        "source": name,
        "destination": OLDER,
        "asked": "profile",
        "judged": True,
        "vcpu_features": [["PMU_V3"]],
        "start": None,
        "direct": False,
        "goes": True,
        "vcpus": 1,
        "options": [],
        "lost_features": ["ID_AA64DFR0_EL1.DebugVer 8 -> 6"],
        "host_differences": [],
        "errata": {"new": [], "gone": []},
        "kernel_faults": [],
    }
    assert [verdict["register"] for verdict in verdicts if verdict["action"] == "swap"] == NEWER_SWAPPED
    assert [verdict["register"] for verdict in verdicts if verdict["action"] == "drop"] == NEWER_DROPPED
    for verdict in verdicts:
        keys = {"vcpu", "action", "register", "id", "from", "to", "rule", "why", "fields", "guest_sees", "option"}
        assert verdict.keys() == keys
        assert verdict["rule"]
        assert verdict["why"]
    (control,) = [verdict for verdict in verdicts if verdict["register"] == "CNTP_CTL_EL0"]
    assert control["from"] == (None if source == "profile" else "0x4")
    assert control["rule"].startswith("harmless if" if source == "profile" else "harmless: ")
    assert sorted(os.listdir(tmp_path)) == before


def test_check_json_of_what_cannot_and_what_need_not(run: Callable[..., Result], older: Path) -> None:
    result = run(*CHECK, "--host", older, "--json")
    assert result.code == 4
    assert (result.json["direct"], result.json["goes"]) == (False, False)
    assert {verdict["action"] for verdict in result.json["verdicts"]} == {"refuse", "drop"}
    result = run("check", CAPTURES / f"{OLDER}.xz", "--host", older, "--json")
    assert result.code == 0
    assert (result.json["direct"], result.json["goes"], result.json["verdicts"]) == (True, True, [])


def test_check_and_rewrite_agree(run: Callable[..., Result], older: Path) -> None:
    for arguments in (ALLOW_SWAPPED, (), ("--mode", "blind"), (*ALLOW_SWAPPED, "--allow-drop", "CNTPCT_EL0")):
        checked = run(*CHECK, "--host", older, "--json", *arguments)
        rewritten = run("rewrite", CHECK[1], "/dev/null", "--host", older, "--report", "-", *arguments)
        assert checked.code == rewritten.code
        changes = [
            {key: value for key, value in verdict.items() if key not in ("guest_sees", "option")}
            for verdict in checked.json["verdicts"]
            if verdict["action"] in ("swap", "drop")
        ]
        assert rewritten.json["changes"] == (changes if checked.json["goes"] else [])


def test_a_rewrite_that_leaves_registers_out(run: Callable[..., Result], tmp_path: Path, older: Path) -> None:
    result = run("rewrite", CHECK[1], tmp_path / "out", "--host", older, *ALLOW_SWAPPED)
    assert result.code == 0
    assert (tmp_path / "out").read_bytes() == downgraded(capture(NEWER))
    assert (
        ", ".join(sorted(NEWER_SWAPPED))
        + " of 1 vCPU swapped, 17 registers of 1 vCPU left out; the guest loses ID_AA64DFR0_EL1.DebugVer 8 -> 6 ("
        in result.error()
    )
    shown = run("inspect", tmp_path / "out", "--json").json
    assert len(shown["vcpus"][0]["registers"]) == 241
    # It is a stream like any other.
    assert run("check", tmp_path / "out", "--host", older).out.startswith(b"The destination takes the guest as it is")


def test_several_vcpus_share_a_line_where_they_are_alike(
    run: Callable[..., Result], tmp_path: Path, host: Path
) -> None:
    stream = with_value(short(SMP2), 0x603000000013C006, 9, 1)
    stream = with_value(stream, parse_register("CTR_EL0"), 0x8444C003, 0)
    (tmp_path / "in").write_bytes(with_value(stream, parse_register("CTR_EL0"), 0x8444C002, 1))
    result = run("check", tmp_path / "in", "--host", host, "--allow-midr", hex(R0))
    assert result.code == 4
    found = rows(result)
    assert found["MIDR_EL1"][:2] == ("swapped", "0x411fd070 -> 0x411fd073")
    assert found["MIDR_EL1"][2][0] == "Revision 0 -> 3"
    assert found["REVIDR_EL1 (vCPU 1)"][:2] == ("refused", "0x9 here, 0x0 there")
    assert found["CTR_EL0 (vCPU 0)"][:2] == ("refused", "0x8444c003 here, 0x8444c004 there")
    assert found["CTR_EL0 (vCPU 1)"][:2] == ("refused", "0x8444c002 here, 0x8444c004 there")
    assert len(found) == 4
    assert answer(result) == "The guest cannot go: 2 registers are refused."
    result = run("check", tmp_path / "in", "--host", host, "--allow-midr", hex(R0), "--json")
    assert result.json["vcpus"] == 2
    assert len(result.json["verdicts"]) == 5


def test_what_check_advises_lets_the_guest_go(run: Callable[..., Result], tmp_path: Path, older: Path) -> None:
    """The options at the end, taken as they are."""
    source = tmp_path / "in"
    source.write_bytes(with_value(short(NEWER), parse_register("CNTP_CTL_EL0"), 1))
    policy = tmp_path / "policy.toml"
    policy.write_text("schema_version = 1\nregisters.drop_harmless = false\n")
    arguments: list[str | Path] = ["check", source, "--host", older, "--policy", policy]
    result = run(*arguments)
    assert result.code == 4
    assert named(result, "left out") == []
    result = run(*arguments, *options(result))
    assert result.code == 0
    assert named(result, "left out") == NEWER_DROPPED
    assert {row[2][-1] for row in rows(result).values() if row[0] == "left out"} == {"--allow-drop"}


def test_what_may_be_left_out_is_a_list(run: Callable[..., Result], tmp_path: Path, older: Path) -> None:
    (tmp_path / "in").write_bytes(with_value(short(NEWER), parse_register("CNTP_CTL_EL0"), 1))
    timer = ("CNTPCT_EL0, cntp_ctl_el0", "CNTP_CVAL_EL0")
    arguments = ("check", tmp_path / "in", "--host", older, *ALLOW_SWAPPED)
    result = run(*arguments)
    assert (result.code, named(result, "refused")) == (4, ["CNTPCT_EL0", "CNTP_CTL_EL0", "CNTP_CVAL_EL0"])
    result = run(*arguments, "--allow-drop", timer[0])
    assert (result.code, named(result, "refused")) == (4, ["CNTP_CVAL_EL0"])
    result = run(*arguments, "--allow-drop", timer[0], "--allow-drop", timer[1])
    assert (result.code, named(result, "refused")) == (0, [])


def test_a_mitigation_that_would_be_lost_is_told_in_words(
    run: Callable[..., Result], tmp_path: Path, host: Path
) -> None:
    register = "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1"
    (tmp_path / "in").write_bytes(with_value(short(SMP2), parse_register(register), 2, 1))
    for mode in ("repair", "blind", "observe"):
        result = run("check", tmp_path / "in", "--host", host, "--allow-midr", hex(R0), "--mode", mode)
        assert result.code == 4
        word, value_, (why, rule, way_out) = rows(result)[f"{register} (vCPU 1)"]
        assert (word, value_) == ("refused", "0x2 here, 0x0 there")
        assert "NOT_REQUIRED on the source, NOT_AVAIL on the destination" in why
        assert "never lowered" in rule
        assert f'[[rule]] with registers = ["{register}"], action = "swap" and a reason' in way_out
        assert answer(result) == "The guest cannot go: 1 register is refused."


def test_a_stream_of_another_architecture_passes(run: Callable[..., Result], tmp_path: Path, older: Path) -> None:
    parts = streams.small()
    other = replace(parts, sections=(parts.sections[0], *parts.sections[2:]))
    (tmp_path / "in").write_bytes(other.stream())
    result = run("check", tmp_path / "in", "--host", older)
    says = b"Not judged: the stream holds no arm64 vCPU; the proxy would pass it on as it is.\n"
    assert (result.code, result.out) == (5, says)
    result = run("check", tmp_path / "in", "--host", older, "--json")
    assert result.code == 5
    assert [result.json[key] for key in ("judged", "direct", "goes", "vcpus")] == [False, None, None, 0]


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_stream_cannot_be_checked(
    run: Callable[..., Result], tmp_path: Path, older: Path, what: str
) -> None:
    content, says = BROKEN[what]
    (tmp_path / "in").write_bytes(content)
    for arguments in ((), ("--json",)):
        result = run("check", tmp_path / "in", "--host", older, *arguments)
        assert (result.code, result.out) == (3, b"")
        assert says in result.error()
        assert str(tmp_path / "in") in result.error()


def test_a_stream_that_is_not_supported_cannot_be_checked(run: Callable[..., Result], older: Path) -> None:
    result = run("check", "-", "--host", older, stdin=multifd())
    assert (result.code, result.out) == (4, b"")
    assert "turn the capability multifd off" in result.error()


def test_check_minds_the_limit_of_device_state(run: Callable[..., Result], host: Path) -> None:
    stream = short(SMP2)
    start = device_state(stream).offset
    section = b"\x04\0\0\0\x63\x05fifo0" + bytes(8) + bytes(2 << 20) + b"\x7e\0\0\0\x63"
    result = run(
        "check", "-", "--host", host, "--device-state-limit", "1", stdin=stream[:start] + section + stream[start:]
    )
    assert result.code == 4
    assert "--device-state-limit" in result.error()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["check"], "SOURCE"),
        (["check", "IN"], "--host PROFILE, --midr ID, or --kvm"),
        (["check", "IN", "--mode", "observe"], "--host PROFILE, --midr ID, or --kvm"),
        (["check", "PARTIAL", "--midr", hex(R3)], "PARTIAL: it does not list all registers"),
        (["check", "POLICY", "--midr", hex(R3)], "POLICY:"),
        (["check", "IN", "--host", "IN"], "IN: "),
        (["check", "IN", "--kvm", "--host", "PARTIAL"], "--kvm asks this host"),
        (["check", "IN", "--kvm", "--midr", hex(R3)], "--kvm asks this host"),
        (["check", "IN", "--midr", hex(R3), "--vcpu-features", "SVE"], "give --kvm, too"),
        (["check", "IN", "--kvm", "--vcpu-features", "SVE,FPU"], "--vcpu-features: there is no feature FPU"),
        (["check", "IN", "--midr", hex(R3), "--allow-drop", "CNTPCT"], "--allow-drop: unknown register 'CNTPCT'"),
        (["check", "IN", "--midr", hex(R3), "--allow-drop", "KVM_REG_ARM_STD_BMAP"], "never left out"),
        (["check", "IN", "--midr", hex(R3), "--allow-register", "CNTPCT_EL0"], "never swapped"),
        (["run", "--listen", "tcp::0", "--connect", "tcp:h:1", "--midr", hex(R3), "--vcpu-features", "SVE"], "--kvm"),
        (["rewrite", "IN", "OUT", "--midr", hex(R3), "--allow-drop", "PSCI"], "--allow-drop: unknown register"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_of_check_is_2(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("IN").write_bytes(short(SMP2))
    Path("PARTIAL").write_text('schema_version = 1\nregisters.MIDR_EL1 = "0x411fd073"')
    Path("POLICY").write_text('schema_version = 1\nwhitelist.midr = ["0x411fd070"]')
    result = run(*args)
    assert result.code == 2
    assert says in result.err
    assert result.out == b""


@pytest.mark.skipif(platform.machine() in ("aarch64", "arm64"), reason="this host may have what is missed here")
@pytest.mark.parametrize(
    "args",
    [
        ("check", CAPTURES / f"{SMP2}.xz", "--kvm"),
        ("check", CAPTURES / f"{SMP2}.xz", "--kvm", "--vcpu-features", "PSCI_0_2,pmu_v3", "--json"),
        ("check", "missing", "--kvm"),
        ("rewrite", CAPTURES / f"{SMP2}.xz", "/dev/null", "--kvm"),
        ("run", "--listen", "tcp:127.0.0.1:0", "--connect", "tcp:127.0.0.1:1", "--kvm"),
        ("host", "probe", "-o", "-"),
    ],
    ids=lambda args: f"{args[0]} {args[-1]}",
)
def test_where_there_is_no_arm64_kvm_it_says_so(run: Callable[..., Result], args: tuple[str | Path, ...]) -> None:
    result = run(*args)
    assert (result.code, result.out) == (1, b"")
    assert "only an arm64 host's KVM knows arm64 registers" in result.error()
    assert platform.machine() in result.error()


# --- known faults of kernels


def test_a_fault_of_a_kernel_is_said_and_refused_when_strict(run: Callable[..., Result], tmp_path: Path) -> None:
    """A kernel that gives late vCPUs its own CLIDR_EL1; the guest has another, which it takes."""
    own = profile("kvm-trixie-a57r3")
    clidr = parse_register("CLIDR_EL1")
    values = own.values | {clidr: own.values[clidr] ^ 1 << 27}
    host = replace(own, kernel="Linux 6.8.0-45-generic", values=values, writable={clidr: 2**64 - 1})
    (tmp_path / "host.toml").write_text(write_profile(host))
    (tmp_path / "guest").write_bytes(short("kvm-trixie-a57r3"))
    arguments = ("check", tmp_path / "guest", "--host", tmp_path / "host.toml")
    says = "a vCPU that comes online after the migration finds the destination's own CLIDR_EL1, not the guest's"
    result = run(*arguments)
    assert result.code == 0
    assert f"the destination's (cache-registers-are-reset): {says}" in result.out.decode()
    found = run(*arguments, "--json").json
    assert found["goes"] is True
    assert found["kernel_faults"] == [{"name": "cache-registers-are-reset", "side": "destination", "what": says}]
    result = run(*arguments, "--strict")
    assert result.code == 4
    assert "as --strict has it: it meets 1 known fault of the hosts' kernels" in result.out.decode()
    assert run(*arguments, "--strict", "--json").json["goes"] is False
    newer = replace(host, kernel="Linux 6.12.94")
    (tmp_path / "host.toml").write_text(write_profile(newer))
    assert b"Known faults" not in run(*arguments).out
    assert run(*arguments, "--strict").code == 0


# --- PSCI


def test_a_psci_version_is_refused_with_the_rule_that_lets_it_go(run: Callable[..., Result], tmp_path: Path) -> None:
    """Linux 7.2 has PSCI 1.3, 6.12 has 1.1: a kernel that is rolled back."""
    arguments = ("check", CAPTURES / "hosts" / "sid-n1.toml", "--host", CAPTURES / "hosts" / "trixie-n1.toml")
    result = run(*arguments)
    assert result.code == 4
    assert "(PSCI 1.3 to 1.1: it would lose SYSTEM_OFF2 (to hibernate))" in result.out.decode()
    (tmp_path / "policy.toml").write_text(
        'schema_version = 1\n[[rule]]\nregisters = ["KVM_REG_ARM_PSCI_VERSION"]\naction = "swap"\n'
        'reason = "no guest here hibernates"\n'
    )
    result = run(*arguments, "--policy", tmp_path / "policy.toml")
    assert result.code == 0
    word, values, lines = rows(result)["KVM_REG_ARM_PSCI_VERSION"]
    assert (word, values) == ("swapped", "0x10003 -> 0x10001")
    assert any("it was told of SYSTEM_OFF2 (to hibernate), which is gone" in line for line in lines)
    assert lines[-1].endswith("rule[0]: no guest here hibernates")
