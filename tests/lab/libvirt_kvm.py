"""Two libvirt hosts with arm64 KVM: emulated machines that each run libvirtd, with a cable between them.

The source has a cortex-a57 r1p0, the destination an r1p3; their guests are host-passthrough. Kernel, KVM, QEMU
and libvirt are Debian's own.
"""

from __future__ import annotations

import tempfile
import uuid
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lab.guest import COUNTER_ADDRESS, MIDR_ADDRESS, counter_guest
from tests.lab.host import A57_R1P0, A57_R1P3, emulator_of, started_host
from tests.lab.host_proxy import transparent_proxy_in
from tests.lab.images import host_image
from tests.lab.libvirt import VirshError
from tests.lab.libvirt_kit import LIBVIRT
from tests.lab.pki import Authority
from tests.lab.qmp import LabError
from tests.lab.remote import CommandFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from tests.lab.host import Host
    from tests.lab.host_proxy import HostProxy

SUITE = "trixie"
SOURCE, DESTINATION = "192.0.2.1", "192.0.2.2"
PKI = "/etc/pki/qemu"
DISK, DISK_SIZE = "/var/lib/disk", 1 << 20

_MEMORY_MIB = 2048
_BOOT_LIMIT = 300.0
_VIRSH_LIMIT = 300.0
_POLL = 0.2

_GUEST = """
<domain type='kvm'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='aarch64' machine='virt-7.2'>hvm</type><kernel>{image}</kernel></os>
  <features><gic version='3'/>{features}</features>
  <cpu mode='host-passthrough' check='none'/>
  <devices>
    <emulator>/usr/bin/qemu-system-aarch64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""


class KvmLibvirtHost:
    """A host with libvirtd. Get two of them from `running_kvm_libvirt`."""

    def __init__(self, host: Host, address: str) -> None:
        self.host = host
        self.address = address
        self._is_ready = False

    @property
    def uri(self) -> str:
        """What virsh on the other host calls this one by."""
        return f"qemu+tcp://{self.address}/system"

    async def wait_ready(self, pki: Path) -> None:
        """Wait until it has booted, and set it up if that was not done yet.

        Raises:
            HostError: it does not boot.
            LabError: libvirtd does not answer.
        """
        await self.host.wait_ready(_BOOT_LIMIT)
        if self._is_ready:
            return
        for path in sorted(pki.iterdir()):
            await self.host.put(f"{PKI}/{path.name}", path.read_bytes(), 0o600)
        await self.host.run(f"ip link set eth1 up && ip addr add {self.address}/24 dev eth1")
        await self.host.run(["libvirtd", "--daemon", "--listen"], limit=_BOOT_LIMIT)
        answer: LabError | None = None
        with trio.move_on_after(_BOOT_LIMIT):
            while not self._is_ready:
                try:
                    await self.virsh("version")
                    self._is_ready = True
                except VirshError as error:
                    answer = error
                    await trio.sleep(_POLL)
        if not self._is_ready:
            log = (await self.host.get("/tmp/libvirtd.log")).decode(errors="replace")
            raise LabError(f"libvirtd on {self.host} does not answer: {answer}\n{log}")

    async def virsh(self, *arguments: str) -> str:
        """Run virsh in this host, and return what it wrote.

        Raises:
            VirshError: it exited with an error.
        """
        try:
            done = await self.host.run(
                ["virsh", "--connect", "qemu+tcp://127.0.0.1/system", *arguments], limit=_VIRSH_LIMIT
            )
        except CommandFailedError as error:
            raise VirshError(str(error)) from error
        return done.output.decode().strip()

    async def domains(self, *options: str) -> set[str]:
        """Return the names of the running guests, or of those that the options of `virsh list` ask for."""
        return set((await self.virsh("list", "--name", *options)).split())


class KvmGuest:
    """A counting guest that libvirt knows by its name, on whichever host."""

    def __init__(self, name: str, identity: str) -> None:
        self.name = name
        self.uuid = identity

    async def _read_u64(self, host: KvmLibvirtHost, address: int) -> int:
        text = await host.virsh("qemu-monitor-command", self.name, "--hmp", f"xp /1gx {address:#x}")
        return int(text.partition(":")[2], 16)

    async def wait_runs(self, host: KvmLibvirtHost, limit: float = 60) -> int:
        """Wait until the counter grows, which shows that the guest runs on this host, and return it.

        Raises:
            LabError: it stood still for limit seconds.
        """
        first = await self._read_u64(host, COUNTER_ADDRESS)
        with trio.move_on_after(limit):
            while (now := await self._read_u64(host, COUNTER_ADDRESS)) <= first:
                await trio.sleep(_POLL)
            return now
        raise LabError(f"{self.name} on {host.host}: counter stood at {first} for {limit} s")

    async def midr(self, host: KvmLibvirtHost) -> int:
        """Return the processor id that the guest has seen at its last look."""
        return await self._read_u64(host, MIDR_ADDRESS)


class KvmLibvirtLab:
    """Two libvirt hosts and the cable between them.

    Attributes:
        source: the host at SOURCE, a cortex-a57 r1p0.
        destination: the host at DESTINATION, an r1p3.
    """

    def __init__(self, source: KvmLibvirtHost, destination: KvmLibvirtHost, pki: Path) -> None:
        self.source = source
        self.destination = destination
        self._pki = pki

    async def wait_ready(self) -> None:
        """Wait until both hosts are set up; the first time takes a minute or two."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.source.wait_ready, self._pki)
            nursery.start_soon(self.destination.wait_ready, self._pki)

    def proxy(self, *options: str) -> AbstractAsyncContextManager[HostProxy]:
        """Run a transparent proxy on the destination that asks its KVM, with the rules that redirect to it."""
        return transparent_proxy_in(self.destination.host, "--kvm", *options)

    @asynccontextmanager
    async def guest(self, *, features: str = "", devices: str = "", dirty: bool = False) -> AsyncIterator[KvmGuest]:
        """Have a counting guest run on the source; at the end it is gone from both hosts.

        Args:
            features: further elements for the XML's <features>.
            devices: the same for <devices>.
            dirty: whether it writes to its memory all the time.
        """
        guest = KvmGuest(f"guest-{uuid.uuid4().hex[:8]}", str(uuid.uuid4()))
        image, xml = f"/var/lib/{guest.name}.bin", f"/var/lib/{guest.name}.xml"
        content = counter_guest(2000, dirty=dirty)
        for host in self.source, self.destination:
            await host.host.put(image, content)
        text = _GUEST.format(name=guest.name, uuid=guest.uuid, image=image, features=features, devices=devices)
        await self.source.host.put(xml, text.encode())
        try:
            await self.source.virsh("create", xml)
            await guest.wait_runs(self.source)
            yield guest
        finally:
            with trio.CancelScope(shield=True):
                for host in self.source, self.destination:
                    if guest.name in await host.domains():
                        await host.virsh("destroy", guest.name)

    async def migrate(self, guest: KvmGuest, *options: str) -> None:
        """Run `virsh migrate --live` on the source; raises VirshError."""
        await self.source.virsh("migrate", "--live", *options, guest.name, self.destination.uri, f"tcp://{DESTINATION}")

    async def put_disk(self) -> str:
        """Put a disk on the source, and an empty one on the destination; return the XML of the guest's device."""
        await self.source.host.put(DISK, b"\xa5" * DISK_SIZE)
        await self.destination.host.put(DISK, bytes(DISK_SIZE))
        driver = "<driver name='qemu' type='raw'/>"
        return f"<disk type='file'>{driver}<source file='{DISK}'/><target dev='vda' bus='virtio'/></disk>"


@contextmanager
def running_kvm_libvirt() -> Iterator[KvmLibvirtLab]:
    """Start both hosts; synchronous, since they outlast the trio run of one test. `wait_ready` is to follow."""
    image = host_image(SUITE, kit=LIBVIRT)
    with tempfile.TemporaryDirectory(prefix="vmstate-lab-") as name, ExitStack() as stack:
        folder = Path(name)
        authority = Authority()
        pki = Path(authority.folder(folder / "pki", "server", "client", host=DESTINATION))
        socket = folder / "cable"
        hosts = []
        for number, (cpu, address, server) in enumerate(((A57_R1P0, SOURCE, "on"), (A57_R1P3, DESTINATION, "off")), 1):
            cable = _cable(socket, server, number)
            emulator = trio.run(emulator_of, cpu)
            hosts.append(
                KvmLibvirtHost(stack.enter_context(started_host(image, cpu, _MEMORY_MIB, emulator, cable)), address)
            )
            trio.run(_wait_for, socket)
        source, destination = hosts
        yield KvmLibvirtLab(source, destination, pki)


def _cable(socket: Path, server: str, number: int) -> Sequence[str]:
    return (
        *("-netdev", f"stream,id=cable,server={server},addr.type=unix,addr.path={socket}"),
        *("-device", f"virtio-net-pci,netdev=cable,romfile=,mac=52:54:00:00:02:{number:02x}"),
    )


async def _wait_for(path: Path) -> None:
    with trio.fail_after(20):
        while not path.exists():
            await trio.sleep(0.05)
