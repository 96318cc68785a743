"""Two libvirt hosts on this machine, and a guest that `virsh migrate` moves between them.

Each is a `Namespace` with its own /run, /var, /etc/libvirt and user database, so that the daemons know nothing of each
other, of a libvirt of the machine, or of earlier ones. The guests are emulated (TCG). The destination's processor
differs: its emulator turns -cpu cortex-a57 into cortex-a72, as with -cpu host the same XML means another processor on
another host; libvirt compares the XML of both sides, and would not let the guest leave otherwise.
"""

from __future__ import annotations

import stat
import tempfile
import time
import uuid
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lab.guest import COUNTER_ADDRESS, MIDR_ADDRESS, counter_guest
from tests.lab.libvirt_kit import QEMU_CONF
from tests.lab.namespace import Namespace, program
from tests.lab.process import Process, find_qemu
from tests.lab.qmp import LabError
from tests.lab.vm import LabTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SOURCE = "192.0.2.1"
DESTINATION = "192.0.2.2"
PORT = 49152
"""What libvirt takes first of its migration_port_min to migration_port_max."""

_START_LIMIT = 30.0
_VIRSH_LIMIT = 60.0
_POLL = 0.05

_SCRIPT = """
cd '{folder}'
echo {name} > /proc/sys/kernel/hostname
mount --bind passwd /etc/passwd
mount --bind group /etc/group
mount --bind etc /etc/libvirt
mount --bind emulator '{emulator}'
mount --bind var /var
mount --bind run /run
'{libvirtd}' --listen &
wait $!
"""

# "none" for loopback laboratories only: whoever reaches the port is root.
_LIBVIRTD_CONF = """
host_uuid = "{host_uuid}"
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
log_outputs = "3:stderr"
"""

_EMULATOR = """#!/bin/sh
for argument; do
    shift
    [ "$argument" = cortex-a57 ] && argument={cpu}
    set -- "$@" "$argument"
done
exec '{qemu}' "$@"
"""

_GUEST = """
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>64</memory>
  <vcpu>{vcpus}</vcpu>
  <os><type arch='aarch64' machine='virt-7.2'>hvm</type><kernel>{image}</kernel></os>
  <features><gic version='2'/></features>
  <cpu mode='custom' match='exact' check='none'><model>cortex-a57</model></cpu>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>
"""


class VirshError(LabError):
    """virsh ended with an error: the message is what it wrote."""


class LibvirtHost:
    """A libvirtd in a namespace of its own. Get two of them from `running_libvirt`."""

    def __init__(self, name: str, address: str, folder: Path, namespace: Namespace) -> None:
        self.name = name
        self.address = address
        self.namespace = namespace
        self._folder = folder

    @property
    def uri(self) -> str:
        """What virsh calls this host by."""
        return f"qemu+tcp://{self.address}/system"

    async def virsh(self, *arguments: str) -> str:
        """Run virsh on this host, connected to its daemon, and return all that it wrote.

        Raises:
            VirshError: it exited with an error.
            LabTimeoutError: it did not exit.
        """
        with tempfile.NamedTemporaryFile(dir=self._folder) as output:
            command = self.namespace.entering(program("virsh", "libvirt-clients"), "--connect", self.uri, *arguments)
            process = Process(command, Path(output.name))
            try:
                with trio.move_on_after(_VIRSH_LIMIT):
                    await process.wait()
            finally:
                process.close()
            text = Path(output.name).read_text()
        if process.returncode == 0:
            return text.strip()
        if process.returncode and process.returncode > 0:
            raise VirshError(text.strip())
        raise LabTimeoutError(f"virsh {' '.join(arguments)} does not end: {text}")

    async def domains(self, *options: str) -> set[str]:
        """Return the names of the running guests, or of those that the options of `virsh list` ask for."""
        return set((await self.virsh("list", "--name", *options)).split())

    def qemu_log(self, guest: str) -> str:
        """What libvirt and QEMU wrote about a guest on this host."""
        return self.file(f"/var/log/libvirt/qemu/{guest}.log").read_text()

    def file(self, path: str) -> Path:
        """Return where a file in the host's own /var, /run or /etc/libvirt is for this machine."""
        return self._folder / path.removeprefix("/").replace("etc/libvirt", "etc")

    @contextmanager
    def redirected(self, ports: str, port: int) -> Iterator[None]:
        """Lead connections that come to this host for any of the ports ("49152-49215") to another of its ports."""
        self.namespace.run("nft", "add table ip lab")
        self.namespace.run("nft", "add chain ip lab lab { type nat hook prerouting priority dstnat; }")
        self.namespace.run("nft", f"add rule ip lab lab tcp dport {ports} redirect to :{port}")
        try:
            yield
        finally:
            self.namespace.run("nft", "delete table ip lab")

    def wait_ready(self) -> None:
        """Wait until the daemon answers.

        Raises:
            LabError: it ended, or is silent.
        """
        deadline = time.monotonic() + _START_LIMIT
        error: LabError | None = None
        while self.namespace.returncode is None and time.monotonic() < deadline:
            try:
                self.namespace.run("virsh", "--connect", self.uri, "hostname")
            except LabError as refusal:
                error = refusal
                time.sleep(_POLL)
            else:
                return
        raise LabError(f"libvirtd on {self.name} does not answer: {error}\n{self.namespace.text()}")


class LibvirtGuest:
    """A counting guest that libvirt knows by its name, on whichever host. Get it from `LibvirtLab.guest`."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def read_u64(self, host: LibvirtHost, address: int) -> int:
        """Read 64 bits of guest-physical memory."""
        text = await host.virsh("qemu-monitor-command", self.name, "--hmp", f"xp /1gx {address:#x}")
        return int(text.partition(":")[2], 16)

    async def counter(self, host: LibvirtHost) -> int:
        """Read the guest's counter."""
        return await self.read_u64(host, COUNTER_ADDRESS)

    async def wait_runs(self, host: LibvirtHost, limit: float = 10) -> int:
        """Wait until the counter grows, which shows that the guest runs on this host, and return it.

        Raises:
            LabTimeoutError: it stood still for limit seconds.
        """
        first = await self.counter(host)
        with trio.move_on_after(limit):
            while (now := await self.counter(host)) <= first:
                await trio.sleep(_POLL)
            return now
        raise LabTimeoutError(f"{self.name} on {host.name}: counter stood at {first} for {limit} s")

    async def wait_midr(self, host: LibvirtHost, value: int, limit: float = 10) -> None:
        """Wait until the guest, which looks at each lap, has seen a processor id.

        Raises:
            LabTimeoutError: it saw another one for limit seconds.
        """
        with trio.move_on_after(limit):
            while (seen := await self.read_u64(host, MIDR_ADDRESS)) != value:
                await trio.sleep(_POLL)
            return
        raise LabTimeoutError(f"{self.name} on {host.name} reads MIDR_EL1 {seen:#x} instead of {value:#x}")


@dataclass(frozen=True, slots=True)
class LibvirtLab:
    """Two libvirt hosts and the cable between them.

    Attributes:
        source: the host at SOURCE; its guests have a cortex-a57.
        destination: the host at DESTINATION; the same guests get a cortex-a72 there.
        folder: seen by both hosts, and by this machine, under the same path.
    """

    source: LibvirtHost
    destination: LibvirtHost
    folder: Path

    @asynccontextmanager
    async def guest(
        self, *, touch_pages: int = 2000, vcpus: int = 1, persistent: bool = False, devices: str = ""
    ) -> AsyncIterator[LibvirtGuest]:
        """Have a counting guest run on the source; at the end it is gone from both hosts.

        Args:
            touch_pages: as for `counter_guest`.
            vcpus: how many; the guest uses the first one.
            persistent: define it, rather than only create it.
            devices: further elements for the XML's <devices>.
        """
        guest = LibvirtGuest(f"guest-{uuid.uuid4().hex[:8]}")
        image, xml = self.folder / f"{guest.name}.bin", self.folder / f"{guest.name}.xml"
        image.write_bytes(counter_guest(touch_pages))
        xml.write_text(
            _GUEST.format(
                name=guest.name,
                uuid=uuid.uuid4(),
                vcpus=vcpus,
                image=image,
                emulator=self.folder / "emulator",
                devices=devices,
            )
        )
        try:
            if persistent:
                await self.source.virsh("define", str(xml))
                await self.source.virsh("start", guest.name)
            else:
                await self.source.virsh("create", str(xml))
            await guest.wait_runs(self.source)
            yield guest
        finally:
            with trio.CancelScope(shield=True):
                for host in self.source, self.destination:
                    if guest.name in await host.domains():
                        await host.virsh("destroy", guest.name)
                    if guest.name in await host.domains("--all"):
                        await host.virsh("undefine", guest.name)


@contextmanager
def running_libvirt() -> Iterator[LibvirtLab]:
    """Run two libvirt hosts; synchronous, since it may outlast the trio run of one test.

    The destination's qemu.conf has migration_host = SOURCE: a migration that names no --migrateuri connects there.

    Raises:
        LabError: a program is not installed, or a daemon does not start.
    """
    with tempfile.TemporaryDirectory(prefix="vmstate-lab-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "emulator").touch()
        source = _started("source", SOURCE, "cortex-a57", "", folder, stack)
        migration_host = f'migration_host = "{SOURCE}"\n'
        destination = _started("destination", DESTINATION, "cortex-a72", migration_host, folder, stack)
        source.namespace.wire(f"{SOURCE}/24", destination.namespace, f"{DESTINATION}/24")
        for host in source, destination:
            host.wait_ready()
        yield LibvirtLab(source, destination, folder)


def _started(name: str, address: str, cpu: str, qemu_conf: str, lab: Path, stack: ExitStack) -> LibvirtHost:
    folder = lab / name
    for path in "etc", "run", "var/lib", "var/log", "var/cache":
        (folder / path).mkdir(parents=True)
    (folder / "etc" / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(host_uuid=uuid.uuid4()))
    (folder / "etc" / "qemu.conf").write_text(QEMU_CONF + qemu_conf)
    _write_users(folder)
    emulator = folder / "emulator"
    emulator.write_text(_EMULATOR.format(cpu=cpu, qemu=find_qemu("qemu-system-aarch64")))
    emulator.chmod(emulator.stat().st_mode | stat.S_IXUSR)
    libvirtd = program("libvirtd", "libvirt-daemon libvirt-daemon-driver-qemu")
    script = _SCRIPT.format(folder=folder, name=name, emulator=lab / "emulator", libvirtd=libvirtd)
    namespace = Namespace(script, folder)
    stack.callback(namespace.close)
    return LibvirtHost(name, address, folder, namespace)


def _write_users(folder: Path) -> None:
    """Give the host the user and group that libvirt's QEMU driver asks for, whatever it is told to use instead."""
    users = Path("/etc/passwd").read_text() + "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"
    (folder / "passwd").write_text(users)
    (folder / "group").write_text(Path("/etc/group").read_text() + "libvirt-qemu:x:64055:\nkvm:x:64056:\n")
