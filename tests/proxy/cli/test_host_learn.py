"""`host learn`: a profile out of a stream."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1
from proxy.hosts.profile_file import load_profile
from tests.captures import CAPTURES
from tests.proxy.cli.command_line import SMP2, Result
from tests.proxy.helpers import NAMES, R3, capture, short, with_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_learning(run: Callable[..., Result], tmp_path: Path, host: Path) -> None:
    text = host.read_text()
    assert 'MIDR_EL1 = "0x411fd073"' in text
    assert 'description = "learned from kvm-trixie-a57r3.xz"' in text
    run("host", "learn", CAPTURES / "kvm-trixie-a57r3.xz", "-o", tmp_path / "x", "--description", 'rack "7"')
    assert r'description = "rack \"7\""' in (tmp_path / "x").read_text()


def test_unlike_processors_cannot_be_learned(run: Callable[..., Result], tmp_path: Path) -> None:
    stream = with_value(short(SMP2), MIDR_EL1, R3, 1)
    result = run("host", "learn", "-", "-o", tmp_path / "out", stdin=stream)
    assert result.code == 4
    assert "MIDR_EL1 differs" in result.error()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_stream_passes_the_host_it_was_learned_from(
    run: Callable[..., Result], name: str, tmp_path: Path
) -> None:
    assert run("host", "learn", CAPTURES / f"{name}.xz", "-o", tmp_path / "host").code == 0
    result = run("rewrite", CAPTURES / f"{name}.xz", "-", "--host", tmp_path / "host")
    assert result.code == 0
    assert result.out == capture(name)


def test_an_emulated_guest_is_no_host(run: Callable[..., Result], tmp_path: Path) -> None:
    learn = ("host", "learn", CAPTURES / "tcg-a57.xz", "-o", tmp_path / "host")
    result = run(*learn)
    assert result.code == 4
    assert "tcg-a57.xz: it holds no MIDR_EL1" in result.error()
    assert not (tmp_path / "host").exists()
    assert run(*learn, "--tcg").code == 0
    assert load_profile(tmp_path / "host").midr is None


def test_the_kernel_and_the_qemu_that_the_operator_knows(run: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "host.toml"
    learn = ("host", "learn", CAPTURES / "kvm-trixie-n1.xz", "-o", out)
    result = run(*learn, "--kernel", "Linux 6.12", "--qemu", "10.0")
    assert result.code == 0
    profile = load_profile(out)
    assert (profile.kernel, profile.qemu) == ("Linux 6.12", "10.0")
    assert profile.writable
    for option, word, says in (("--kernel", "Linux 6.8", "the rules of Linux"), ("--qemu", "new", "write a version")):
        result = run(*learn, "--force", option, word)
        assert result.code == 2
        assert says in result.error()
    assert load_profile(out) == profile


def test_streams_of_two_hosts_are_no_profile(run: Callable[..., Result], tmp_path: Path) -> None:
    streams = (CAPTURES / "kvm-trixie-a57r3.xz", CAPTURES / "kvm-trixie-a57r0.xz")
    result = run("host", "learn", *streams, "-o", tmp_path / "host.toml")
    assert result.code == 4
    assert "MIDR_EL1 differs for vCPUs with PMU_V3, so they were recorded on unlike hosts" in result.error()
    assert "kvm-trixie-a57r3.xz and " in result.error()
    assert not (tmp_path / "host.toml").exists()
