"""Differences between streams and profiles, in the library and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from formats.arm.sysreg import MIDR_EL1, describe, parse_register
from proxy.captures.difference import register_differences, section_differences
from proxy.hosts.profile_text import write_profile
from tests.captures import CAPTURES
from tests.proxy.helpers import R0, R3, ROOT, capture, profile, value, with_value

if TYPE_CHECKING:
    from pathlib import Path

CTR = parse_register("CTR_EL0")
A57R0, A57R3 = CAPTURES / "kvm-trixie-a57r0.xz", CAPTURES / "kvm-trixie-a57r3.xz"


def diff(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", "diff", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_registers() -> None:
    first: dict[int, dict[int, int | None]] = {0: {MIDR_EL1: R0, CTR: 1}, 1: {MIDR_EL1: R0, CTR: None}, 2: {CTR: 1}}
    second: dict[int, dict[int, int | None]] = {0: {MIDR_EL1: R3}, 1: {MIDR_EL1: R0, CTR: 9}}
    found = [(one.vcpu, one.register, one.first, one.second, one.there) for one in register_differences(first, second)]
    assert found == [
        (0, MIDR_EL1, R0, R3, (True, True)),
        (0, CTR, 1, None, (True, False)),
    ]


def test_a_stream_does_not_differ_from_itself() -> None:
    done = diff(A57R0, A57R0, "--all", "--exit-code")
    assert (done.returncode, done.stdout, done.stderr) == (0, "No differences.\n", "")


def test_two_steppings_differ_in_one_register() -> None:
    done = diff(A57R0, A57R3)
    assert (done.returncode, done.stdout) == (0, "MIDR_EL1  0x411fd070, 0x411fd073  (Revision 0, 3)\n")
    assert diff(A57R0, A57R3, "--exit-code").returncode == 1


def test_the_guests_own_state_is_shown_when_asked_for(tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    changed.write_bytes(with_value(capture("kvm-trixie-a57r0"), parse_register("SCTLR_EL1"), 5))
    assert diff(A57R0, changed).stdout == "No differences.\n"
    lines = diff(A57R0, changed, "--all").stdout.splitlines()
    was = f"{value(capture('kvm-trixie-a57r0'), parse_register('SCTLR_EL1')):#x}"
    assert lines == [f"SCTLR_EL1  {was}, 0x5", "section 'cpu' instance 0: cpreg_vmstate_values"]


def test_profiles_and_streams(tmp_path: Path) -> None:
    (tmp_path / "here.toml").write_text(write_profile(profile("kvm-trixie-n1")))
    by_profile = diff(tmp_path / "here.toml", CAPTURES / "kvm-bookworm-n1.xz", "--json")
    found: dict[str, Any] = json.loads(by_profile.stdout)
    assert found["sections"] == []
    assert found["vcpus"] == [1, 1]
    assert [one["fields"] for one in found["registers"] if one["register"] == "ID_AA64DFR0_EL1"] == [["DebugVer 8, 6"]]
    assert [one["register"] for one in found["registers"] if one["in"] == ["first"]][-1] == "CNTP_CVAL_EL0"
    by_streams = json.loads(diff(CAPTURES / "kvm-trixie-n1.xz", CAPTURES / "kvm-bookworm-n1.xz", "--json").stdout)
    names = [one["register"] for one in found["registers"]]
    assert [one["register"] for one in by_streams["registers"]] == names


def test_more_vcpus_are_more(tmp_path: Path) -> None:
    done = diff(A57R0, CAPTURES / "kvm-trixie-a57r0-smp2.xz", "--all")
    assert done.stdout.startswith("vCPUs: 1 in A, 2 in B\n")
    assert "section 'cpu' instance 1  only in B" in done.stdout


@pytest.mark.parametrize(("what", "code"), [(b"QEVM\0\0", 3), (b"nonsense", 3), (b"schema_version = 7\n", 2)])
def test_what_cannot_be_compared(tmp_path: Path, what: bytes, code: int) -> None:
    (tmp_path / "broken").write_bytes(what)
    done = diff(A57R0, tmp_path / "broken")
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "broken") in done.stderr


def test_sections_that_one_lacks() -> None:
    found = list(section_differences({("a", 0): [], ("b", 0): []}, {("b", 0): [], ("c", 1): []}))
    assert [(one.name, one.instance, one.there) for one in found] == [
        ("a", 0, (True, False)),
        ("c", 1, (False, True)),
    ]


def test_state_is_not_taken_apart_into_fields() -> None:
    (one,) = register_differences({0: {parse_register("SCTLR_EL1"): 1}}, {0: {parse_register("SCTLR_EL1"): 2}})
    assert one.fields == []
    assert not describe(one.register).invariant
