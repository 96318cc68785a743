"""Looking at the QEMU that a migration goes to: who listens, and what its command line says."""

from __future__ import annotations

import socket

import pytest

from formats.arm.vcpu_features import VcpuFeature
from proxy.hosts.started_qemu import has_property, look_at, parse_command

PAUTH = {VcpuFeature.PTRAUTH_ADDRESS, VcpuFeature.PTRAUTH_GENERIC}


@pytest.mark.parametrize(
    ("cpu", "off"),
    [
        ("host", set()),
        ("host,pmu=off", {VcpuFeature.PMU_V3}),
        ("host,sve=off,pauth=off", PAUTH | {VcpuFeature.SVE}),
        ("host,pmu=off,pmu=on", set()),
        ("max,kvm-steal-time=off,pmu=off", {VcpuFeature.PMU_V3}),
    ],
)
def test_what_a_command_line_turns_off(cpu: str, off: set[VcpuFeature]) -> None:
    found = parse_command(7, ["/usr/bin/qemu-system-aarch64", "-M", "virt", "-cpu", cpu, "-accel", "kvm"])
    assert found is not None
    assert found.off == off
    assert str(found) == f"process 7, -cpu {cpu}"


@pytest.mark.parametrize(
    "words",
    [
        [""],
        ["qemu-system-aarch64", "-M", "virt"],
        ["qemu-system-aarch64", "-cpu"],
        ["qemu-system-aarch64", "-cpu", "cortex-a57,pmu=off"],
    ],
)
def test_what_does_not_tell_is_not_guessed(words: list[str]) -> None:
    assert parse_command(7, words) is None


def test_other_hosts_and_other_programs_are_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert look_at("127.0.0.1", port) is None  # this test is no QEMU
        assert look_at("192.0.2.1", port) is None
        assert look_at("localhost", port) is None
    assert look_at("127.0.0.1", port) is None


@pytest.mark.parametrize("qemu", ["7.2.0", "10.0.13", "11.1", None, "of my own"])
def test_what_every_newer_qemu_can_turn_off(qemu: str | None) -> None:
    assert all(has_property(qemu, name) for name in ("pmu", "sve", "pauth"))


def test_what_an_old_qemu_cannot() -> None:
    assert [has_property("5.2.0", name) for name in ("pmu", "sve", "pauth")] == [True, True, False]
