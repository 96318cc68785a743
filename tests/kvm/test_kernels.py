"""One processor, two kernels: register lists of different length, and the destination's own kernel as judge."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.kvm.helpers import THOROUGH, learn, record
from tests.lab.guest import counter_guest
from tests.lab.host_proxy import running_proxy_in, vmstate_proxy_in
from tests.lab.proxy import running_proxy, vmstate_proxy
from tests.lab.vm import wire_uri

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.lab.host import Host
    from tests.lab.host_proxy import HostProxy
    from tests.lab.pool import Lab
    from tests.lab.proxy import Proxy

N1 = "neoverse-n1"
A72 = "cortex-a72"
SWAPPED = ["CCSIDR_EL1[0]", "CCSIDR_EL1[1]", "CCSIDR_EL1[2]", "ID_AA64DFR0_EL1", "CLIDR_EL1"]
DROPPED = [f"CCSIDR_EL1[{index}]" for index in range(3, 14)]
DROPPED += ["TCR2_EL1", "PIRE0_EL1", "PIR_EL1", "CNTPCT_EL0", "CNTP_CTL_EL0", "CNTP_CVAL_EL0"]
ALLOWED = ("--allow-register", ",".join(SWAPPED), "--allow-loss", "ID_AA64DFR0_EL1.DebugVer")
MITIGATION = "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1"
BY_PROFILE = pytest.mark.parametrize("asked", ["profile", pytest.param("kvm", marks=THOROUGH)])
BY_KVM = pytest.mark.parametrize("asked", [pytest.param("profile", marks=THOROUGH), "kvm"])


def names(changes: list[dict[str, Any]], action: str) -> list[str]:
    return [change["register"] for change in changes if change["action"] == action]


async def a_proxy(
    asked: str, host: Host, destination: str, directory: Path, *options: str
) -> AbstractAsyncContextManager[Proxy | HostProxy]:
    """Prepare a proxy that judges by a profile, on this machine, or by the kernel, on the destination."""
    if asked == "kvm":
        return running_proxy_in(host, destination, "--kvm", *options)
    return running_proxy(destination, "--host", await learn(directory, host), *options)


@BY_KVM
async def test_newer_kernel_to_older(lab: Lab, tmp_path: Path, asked: str) -> None:
    newer, older = await lab.host(cpu=N1, suite="trixie"), await lab.host(cpu=N1, suite="bookworm")
    async with (
        newer.guest(name="source", smp=2, image=counter_guest()) as source,
        older.guest(name="destination", smp=2, incoming="tcp:127.0.0.1:0") as destination,
        await a_proxy(asked, older, wire_uri(await destination.incoming_port()), tmp_path, *ALLOWED, "--once") as proxy,
    ):
        await source.wait_counter_moves()
        await source.migrate(proxy.uri)
        assert (await source.wait_migration()).status == "completed", proxy.text()
        left = await source.counter()
        assert await destination.wait_counter_moves() > left
        assert await proxy.wait_exit() == 0
        [report] = proxy.reports()
    assert report["outcome"] == "rewritten"
    for vcpu in range(2):
        changes = [change for change in report["changes"] if change["vcpu"] == vcpu]
        assert names(changes, "swap") == SWAPPED
        assert names(changes, "drop") == DROPPED
        assert all(change["rule"].startswith("harmless: ") for change in changes if change["action"] == "drop")
    # An id and a value of each, of two vCPUs; the digits of the vmdesc's counts are as many as before.
    assert report["bytes_in"] - report["bytes_out"] == 2 * 16 * len(DROPPED)


@BY_KVM
async def test_older_kernel_to_newer_needs_nothing(lab: Lab, tmp_path: Path, asked: str) -> None:
    newer, older = await lab.host(cpu=N1, suite="trixie"), await lab.host(cpu=N1, suite="bookworm")
    async with (
        older.guest(name="source", image=counter_guest()) as source,
        newer.guest(name="destination", incoming="tcp:127.0.0.1:0") as destination,
        await a_proxy(asked, newer, wire_uri(await destination.incoming_port()), tmp_path, *ALLOWED, "--once") as proxy,
    ):
        await source.wait_counter_moves()
        await source.migrate(proxy.uri)
        assert (await source.wait_migration()).status == "completed", proxy.text()
        left = await source.counter()
        assert await destination.wait_counter_moves() > left
        assert await proxy.wait_exit() == 0
        [report] = proxy.reports()
    if asked == "kvm":
        # CCSIDRs, CLIDR_EL1 and ID_AA64DFR0_EL1 differ; this kernel takes them, so they stay.
        assert report["outcome"] == "unchanged"
        assert report["bytes_in"] == report["bytes_out"]
    else:
        # A profile learned from a stream does not know the writable masks.
        assert names(report["changes"], "drop") == []
        assert set(names(report["changes"], "swap")) <= {"ID_AA64DFR0_EL1"}


async def test_a_kernel_that_is_rolled_back(lab: Lab, tmp_path: Path) -> None:
    """Linux 7.2 told the guest of PSCI 1.3, 6.12 has 1.1; a rule that names it lets the guest go."""
    newer, older = await lab.host(cpu=N1, suite="sid"), await lab.host(cpu=N1, suite="trixie")
    rule = '[[rule]]\nregisters = ["KVM_REG_ARM_PSCI_VERSION"]\naction = "swap"\nreason = "no guest hibernates"\n'
    (tmp_path / "policy.toml").write_text(f"schema_version = 1\n{rule}")
    judged = ("--host", await learn(tmp_path, older), "--once")
    async with newer.guest(name="source", image=counter_guest()) as source:
        await source.wait_counter_moves()
        async with (
            older.guest(name="refusing", incoming="tcp:127.0.0.1:0") as destination,
            running_proxy(wire_uri(await destination.incoming_port()), *judged) as proxy,
        ):
            await source.migrate(proxy.uri)
            assert (await source.wait_migration()).status == "failed"
            assert await proxy.wait_exit() == 4
            [report] = proxy.reports()
            assert report["refused_registers"] == ["KVM_REG_ARM_PSCI_VERSION"]
            assert "PSCI 1.3 to 1.1: it would lose SYSTEM_OFF2" in report["reason"]
        await source.wait_counter_moves()
        async with (
            older.guest(name="destination", incoming="tcp:127.0.0.1:0") as destination,
            running_proxy(
                wire_uri(await destination.incoming_port()), *judged, "--policy", str(tmp_path / "policy.toml")
            ) as proxy,
        ):
            await source.migrate(proxy.uri)
            assert (await source.wait_migration()).status == "completed", proxy.text()
            left = await source.counter()
            assert await destination.wait_counter_moves() > left
            assert await proxy.wait_exit() == 0
            [report] = proxy.reports()
            assert names(report["changes"], "swap") == ["KVM_REG_ARM_PSCI_VERSION"]


@BY_PROFILE
async def test_a_mitigation_is_never_lowered(lab: Lab, tmp_path: Path, asked: str) -> None:
    """neoverse-n1 needs no SMCCC_ARCH_WORKAROUND_1, and says so to its guests; cortex-a72 cannot say it."""
    here, there = await lab.hosts(N1, A72, suite="bookworm")
    options = ("--allow-midr", "0x414fd0c1", "--mode", "blind", "--once")
    async with (
        here.guest(name="source", image=counter_guest()) as source,
        there.guest(name="destination", incoming="tcp:127.0.0.1:0") as destination,
        await a_proxy(asked, there, wire_uri(await destination.incoming_port()), tmp_path, *options) as proxy,
    ):
        await source.wait_counter_moves()
        await source.migrate(proxy.uri)
        assert (await source.wait_migration()).status == "failed"
        await source.wait_counter_moves()
        assert await source.status() == "running"
        assert await proxy.wait_exit() == 4
        [report] = proxy.reports()
    assert report["outcome"] == "refused"
    assert report["bytes_out"] < report["bytes_in"]
    assert MITIGATION in report["reason"]
    assert "never lowered" in report["reason"]


async def test_check_asks_the_kernel_of_its_host(lab: Lab, tmp_path: Path) -> None:
    newer, older = await lab.host(cpu=N1, suite="trixie"), await lab.host(cpu=N1, suite="bookworm")
    await older.put("/tmp/source.stream", await record(newer))
    completed = await vmstate_proxy_in(older, "check", "/tmp/source.stream", "--kvm", "--json", *ALLOWED)
    answer = json.loads(completed.stdout)
    assert (answer["asked"], answer["direct"], answer["goes"]) == ("kvm", False, True)
    assert names(answer["verdicts"], "swap") == SWAPPED
    assert names(answer["verdicts"], "drop") == DROPPED
    assert {one["why"] for one in answer["verdicts"] if one["action"] == "swap"} == {"this host's KVM answers EINVAL"}

    completed = await vmstate_proxy_in(older, "check", "/tmp/source.stream", "--kvm", check=False)
    assert completed.returncode == 4
    assert "The guest cannot go: 5 registers are refused." in completed.stdout

    # The same question of the profile, from outside.
    stream = tmp_path / "source.stream"
    stream.write_bytes(await newer.get("/tmp/recorded.stream"))
    code, output = await vmstate_proxy("check", str(stream), "--host", await learn(tmp_path, older), "--json", *ALLOWED)
    assert code == 0
    actions = [(one["register"], one["action"]) for one in json.loads(output)["verdicts"]]
    assert actions == [(one["register"], one["action"]) for one in answer["verdicts"]]
