"""`virsh migrate` of host-passthrough guests between two arm64 KVM hosts, MIDR r1p0 to r1p3: `make libvirt-kvm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.libvirt import VirshError
from tests.lab.libvirt_kvm import DISK, PKI, running_kvm_libvirt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.host_proxy import HostProxy
    from tests.lab.libvirt_kvm import KvmGuest, KvmLibvirtLab

R1P0, R1P3 = 0x411FD070, 0x411FD073
ALLOWED = ("--allow-midr", hex(R1P0))
TLS = ("--listen-tls", PKI, "--connect-tls", f"{PKI}/")
"""The same credentials for both sides."""


@pytest.fixture(scope="module")
def booting() -> Iterator[KvmLibvirtLab]:
    with running_kvm_libvirt() as lab:
        yield lab


@pytest.fixture
async def lab(booting: KvmLibvirtLab) -> KvmLibvirtLab:
    await booting.wait_ready()
    return booting


async def assert_arrived(lab: KvmLibvirtLab, guest: KvmGuest, before: int, proxy: HostProxy) -> None:
    """It counts on at the destination, on its processor; the source does not know it; the report names it."""
    assert await lab.source.domains("--all") == set()
    assert await lab.destination.domains() == {guest.name}
    assert await guest.wait_runs(lab.destination) > before
    assert await guest.midr(lab.destination) == R1P3
    report = (await proxy.wait_reports(1))[0]
    assert report["outcome"] == "rewritten", proxy.text()
    assert {change["register"] for change in report["changes"]} == {"MIDR_EL1"}
    assert report["guest"] == {"name": guest.name, "uuid": guest.uuid}


async def assert_stayed(lab: KvmLibvirtLab, guest: KvmGuest) -> None:
    """It runs at the source, and the destination does not know it."""
    assert await lab.source.domains() == {guest.name}
    assert await lab.destination.domains("--all") == set()
    await guest.wait_runs(lab.source)


async def test_without_a_proxy_the_destinations_kvm_refuses(lab: KvmLibvirtLab) -> None:
    async with lab.guest() as guest:
        assert await guest.midr(lab.source) == R1P0
        with pytest.raises(VirshError):
            await lab.migrate(guest)
        await assert_stayed(lab, guest)


@pytest.mark.parametrize(
    ("flags", "channels"),
    [
        ("", 0),
        ("--p2p", 0),
        ("--parallel --parallel-connections 3", 3),
        ("--postcopy --postcopy-after-precopy --bandwidth 2", 1),  # libvirt has QEMU open a preempt channel
    ],
)
async def test_a_guest_moves(lab: KvmLibvirtLab, flags: str, channels: int) -> None:
    postcopy = "--postcopy" in flags
    async with lab.guest(dirty=postcopy) as guest, lab.proxy(*ALLOWED) as proxy:
        before = await guest.wait_runs(lab.source)
        await lab.migrate(guest, *flags.split())
        await assert_arrived(lab, guest, before, proxy)
        report = proxy.reports()[0]
        assert report["channels"] == channels
        assert report["postcopy"] == postcopy


async def test_a_guest_without_pmu_moves(lab: KvmLibvirtLab) -> None:
    async with lab.guest(features="<pmu state='off'/>") as guest, lab.proxy(*ALLOWED) as proxy:
        before = await guest.wait_runs(lab.source)
        await lab.migrate(guest)
        await assert_arrived(lab, guest, before, proxy)
        [kind] = proxy.reports()[0]["vcpu_features"]
        assert "PMU_V3" not in kind
        assert proxy.reports()[0]["start"]["qemu"] == "-cpu host,pmu=off"


@pytest.mark.parametrize("flags", ["--tls", "--tls --p2p"])
async def test_a_guest_moves_over_tls(lab: KvmLibvirtLab, flags: str) -> None:
    async with lab.guest() as guest, lab.proxy(*ALLOWED, *TLS, "--require-tls") as proxy:
        before = await guest.wait_runs(lab.source)
        with pytest.raises(VirshError):
            await lab.migrate(guest)  # in plain text
        await assert_stayed(lab, guest)
        assert proxy.reports() == []
        await lab.migrate(guest, *flags.split())
        await assert_arrived(lab, guest, before, proxy)
        assert proxy.reports()[0]["source_tls"] == proxy.reports()[0]["destination_tls"] == "guest mover"


async def test_a_guest_moves_with_its_disk(lab: KvmLibvirtLab) -> None:
    devices = await lab.put_disk()
    async with lab.guest(devices=devices) as guest, lab.proxy(*ALLOWED) as proxy:
        before = await guest.wait_runs(lab.source)
        await lab.migrate(guest, "--copy-storage-all", "--unsafe")
        await assert_arrived(lab, guest, before, proxy)
    assert await lab.destination.host.get(DISK) == await lab.source.host.get(DISK)


async def test_a_refused_guest_stays(lab: KvmLibvirtLab) -> None:
    """The policy does not have its processor."""
    async with lab.guest() as guest, lab.proxy() as proxy:
        with pytest.raises(VirshError):
            await lab.migrate(guest)
        await assert_stayed(lab, guest)
        [report] = await proxy.wait_reports(1)
        assert report["outcome"] == "refused"
        assert "--allow-midr 0x411fd070" in report["reason"]
