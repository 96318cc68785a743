"""`virsh migrate` between two libvirt hosts, whose processors differ; docs/guide.md shows the same commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.lab.libvirt import DESTINATION, PORT, SOURCE, VirshError, running_libvirt
from tests.lab.proxy import running_proxy
from tests.live.helpers import A57_TO_A72, learn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager

    from tests.lab.libvirt import LibvirtGuest, LibvirtHost, LibvirtLab
    from tests.lab.proxy import Proxy

MIDR_A72 = 0x410FD083
LOOPBACK = "127.0.0.1"
DISKS_URI = f"tcp://{DESTINATION}:49300"
"""Not of the ports that libvirt chooses from, and not --disks-port: libvirt 9.0 never gives such a port back."""

_DISK = "/var/lib/disk"
_DISK_SIZE = 1 << 20

BESIDE_DESTINATION = ("--migrateuri", f"tcp://{DESTINATION}:{PORT}", "--listen-address", LOOPBACK)
"""The destination's QEMU listens on its loopback interface, and the proxy on the same port of the host's address."""

STRAIGHT = ("--migrateuri", f"tcp://{DESTINATION}")
"""No proxy: the address in place of a name, and whichever port libvirt chooses."""


@pytest.fixture(scope="module")
def lab() -> Iterator[LibvirtLab]:
    with running_libvirt() as lab:
        yield lab


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    return trio.run(learn, tmp_path_factory.mktemp("profile"), "cortex-a72")


def proxy_on(host: LibvirtHost, listen: str, connect: str, *options: str) -> AbstractAsyncContextManager[Proxy]:
    """Run a proxy in a host's network, from and to address:port."""
    listening = f"tcp:{listen}"
    return running_proxy(f"tcp:{connect}", *options, listen=listening, entering=host.namespace.entering())


def beside_destination(lab: LibvirtLab, *options: str) -> AbstractAsyncContextManager[Proxy]:
    return proxy_on(lab.destination, f"{DESTINATION}:{PORT}", f"{LOOPBACK}:{PORT}", *options)


def beside_source(lab: LibvirtLab, *options: str) -> AbstractAsyncContextManager[Proxy]:
    return proxy_on(lab.source, f"{SOURCE}:{PORT}", f"{DESTINATION}:{PORT}", *options)


def repairing(profile: str) -> tuple[str, ...]:
    return ("--host", profile, *A57_TO_A72, "--allow-midr", "none", "--once")


def disk_to_copy(lab: LibvirtLab) -> str:
    """Put a disk on the source, and an empty one on the destination; return the XML of the guest's device."""
    lab.source.file(_DISK).write_bytes(b"\xa5" * _DISK_SIZE)
    lab.destination.file(_DISK).write_bytes(bytes(_DISK_SIZE))
    driver = "<driver name='qemu' type='raw' cache='none'/>"
    return f"<disk type='file'>{driver}<source file='{_DISK}'/><target dev='vda' bus='virtio'/></disk>"


def disks_are_equal(lab: LibvirtLab) -> bool:
    return lab.destination.file(_DISK).read_bytes() == lab.source.file(_DISK).read_bytes()


async def migrate(lab: LibvirtLab, guest: LibvirtGuest, *options: str) -> None:
    await lab.source.virsh("migrate", "--live", *options, guest.name, lab.destination.uri)


async def assert_stayed(lab: LibvirtLab, guest: LibvirtGuest) -> None:
    """It runs at the source, and the destination does not know it."""
    assert await lab.source.domains() == {guest.name}
    assert await lab.destination.domains("--all") == set()
    await guest.wait_runs(lab.source)


async def assert_arrived(lab: LibvirtLab, guest: LibvirtGuest, before: int) -> None:
    """It counts on at the destination, on its processor, and the source does not know it."""
    assert await lab.source.domains("--all") == set()
    assert await lab.destination.domains() == {guest.name}
    assert await guest.wait_runs(lab.destination) > before
    await guest.wait_midr(lab.destination, MIDR_A72)


def assert_destination_refused(lab: LibvirtLab, guest: LibvirtGuest) -> None:
    """Its own QEMU did; virsh's words depend on which end of the failure it sees first."""
    assert "error while loading state for instance 0x0 of device 'cpu'" in lab.destination.qemu_log(guest.name)


async def assert_rewritten(proxy: Proxy, vcpus: int = 1) -> None:
    assert await proxy.wait_exit() == 0, proxy.text()
    [report] = proxy.reports()
    assert report["outcome"] == "rewritten"
    assert sorted(change["register"] for change in report["changes"]) == sorted(["ID_MMFR0_EL1", "ID_MMFR0"] * vcpus)


async def test_without_a_proxy_the_destination_refuses(lab: LibvirtLab) -> None:
    async with lab.guest() as guest:
        with pytest.raises(VirshError):
            await migrate(lab, guest, *STRAIGHT)
        await assert_stayed(lab, guest)
        assert_destination_refused(lab, guest)


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--p2p",
        "--p2p --persistent --undefinesource",
        "--parallel --parallel-connections 3",
        "--abort-on-error --auto-converge --compressed --comp-methods xbzrle --verbose",
    ],
)
async def test_proxy_beside_the_destination(lab: LibvirtLab, profile: str, flags: str) -> None:
    persistent = "--persistent" in flags
    async with (
        lab.guest(vcpus=2, persistent=persistent) as guest,
        beside_destination(lab, *repairing(profile)) as proxy,
    ):
        before = await guest.wait_runs(lab.source)
        await migrate(lab, guest, *flags.split(), *BESIDE_DESTINATION)
        await assert_arrived(lab, guest, before)
        await assert_rewritten(proxy, vcpus=2)
        assert proxy.reports()[0]["channels"] == (3 if "--parallel" in flags else 0)
        assert (guest.name in await lab.destination.domains("--persistent")) == persistent


@pytest.mark.parametrize("uri", [f"tcp://{SOURCE}:{PORT}", f"tcp://{SOURCE}"])
async def test_proxy_beside_the_source(lab: LibvirtLab, profile: str, uri: str) -> None:
    """The destination's QEMU listens on that port of all its addresses; without one, libvirt takes its first."""
    async with lab.guest() as guest, beside_source(lab, *repairing(profile)) as proxy:
        before = await guest.wait_runs(lab.source)
        await migrate(lab, guest, "--migrateuri", uri)
        await assert_arrived(lab, guest, before)
        await assert_rewritten(proxy)


async def test_destination_whose_configuration_names_the_proxy(lab: LibvirtLab, profile: str) -> None:
    """migration_host in its qemu.conf leads sources there: virsh needs no option at all."""
    async with lab.guest() as guest, beside_source(lab, *repairing(profile)) as proxy:
        before = await guest.wait_runs(lab.source)
        await migrate(lab, guest)
        await assert_arrived(lab, guest, before)
        await assert_rewritten(proxy)


@pytest.mark.parametrize("flags", ["", "--parallel", f"--copy-storage-all --disks-uri {DISKS_URI}"])
async def test_ports_that_are_redirected_to_the_proxy(lab: LibvirtLab, profile: str, flags: str) -> None:
    """The source connects to the destination's QEMU, as it thinks."""
    proxy_there = proxy_on(lab.destination, f"{DESTINATION}:4444", f"{DESTINATION}:{PORT}", *repairing(profile))
    async with lab.guest(devices=disk_to_copy(lab)) as guest, proxy_there as proxy:
        before = await guest.wait_runs(lab.source)
        with lab.destination.redirected(f"{PORT}-49215", 4444):
            await migrate(lab, guest, "--unsafe", *flags.split(), *STRAIGHT)
        await assert_arrived(lab, guest, before)
        await assert_rewritten(proxy)
    assert disks_are_equal(lab) == ("--copy-storage-all" in flags)


async def test_refused_and_then_allowed(lab: LibvirtLab, profile: str) -> None:
    async with lab.guest() as guest:
        async with beside_destination(lab, "--host", profile, "--allow-midr", "none", "--once") as proxy:
            with pytest.raises(VirshError):
                await migrate(lab, guest, *BESIDE_DESTINATION)
            await assert_stayed(lab, guest)
            assert "device 'cpu'" not in lab.destination.qemu_log(guest.name)
            assert await proxy.wait_exit() == 4
            [report] = proxy.reports()
            assert report["outcome"] == "refused"
            assert "--allow-register ID_MMFR0" in report["reason"]
        async with beside_destination(lab, *repairing(profile)) as proxy:
            before = await guest.wait_runs(lab.source)
            await migrate(lab, guest, *BESIDE_DESTINATION)
            await assert_arrived(lab, guest, before)
            await assert_rewritten(proxy)


async def test_postcopy(lab: LibvirtLab, profile: str) -> None:
    async with lab.guest() as guest, beside_destination(lab, *repairing(profile)) as proxy:
        before = await guest.wait_runs(lab.source)
        await migrate(lab, guest, "--postcopy", "--postcopy-after-precopy", "--bandwidth", "2", *BESIDE_DESTINATION)
        await assert_arrived(lab, guest, before)
        await assert_rewritten(proxy)


async def test_tunnelled_passes_by_the_proxy(lab: LibvirtLab, profile: str) -> None:
    """The stream goes from daemon to daemon then, so that the destination refuses it as without a proxy."""
    async with lab.guest() as guest, beside_source(lab, *repairing(profile)) as proxy:
        with pytest.raises(VirshError):
            await migrate(lab, guest, "--p2p", "--tunnelled")
        await assert_stayed(lab, guest)
        assert_destination_refused(lab, guest)
        assert "migration " not in proxy.text()


async def test_disks_are_copied_past_the_proxy(lab: LibvirtLab, profile: str) -> None:
    """NBD goes where the stream goes, unless --disks-uri says otherwise."""
    async with lab.guest(devices=disk_to_copy(lab)) as guest, beside_source(lab, *repairing(profile)) as proxy:
        before = await guest.wait_runs(lab.source)
        disks = ("--copy-storage-all", "--disks-uri", DISKS_URI)
        await migrate(lab, guest, *disks, "--migrateuri", f"tcp://{SOURCE}:{PORT}")
        await assert_arrived(lab, guest, before)
        await assert_rewritten(proxy)
    assert disks_are_equal(lab)
