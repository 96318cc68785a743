"""Emulated arm64 hosts with a real /dev/kvm, and guests that run on it.

A host is a QEMU that emulates EL2 (TCG) with a Debian kernel; in it runs the QEMU of that Debian, with `-accel kvm`.
The kernel, KVM and the inner QEMU are the real ones, so what they refuse is what an arm64 server refuses.

HostError (a LabError): a host does not start, or died; the message ends with what its kernel said last.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lab.agent import PORT, READY
from tests.lab.host_guest import running_guest
from tests.lab.images import MACHINES, HostImage, host_image
from tests.lab.process import Process, find_qemu
from tests.lab.qemus import other_qemu
from tests.lab.qmp import LabError, QmpClient
from tests.lab.remote import CommandFailedError, CompletedCommand, HostLostError, run_command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from tests.lab.vm import Vm

A57_R1P0 = "cortex-a57,midr=0x411fd070"
A57_R1P3 = "cortex-a57,midr=0x411fd073"
"""Two revisions of one processor: they differ in MIDR_EL1 alone."""

NEWER_CPUS = frozenset({"neoverse-v1"})
"""Processors that QEMU has from 8.1 on; the lab's own QEMU of trixie emulates hosts with them."""
MACHINE = "virt-7.2,gic-version=3"
"""The machine type that guests have where their hosts' QEMU knows it; see `tests.lab.images.MACHINES`."""

_BINARY = "qemu-system-aarch64"
_NETWORK = "n0"
# "  TCP[HOST_FORWARD]  13       127.0.0.1 40337       10.0.2.15  7000     0     0" (libslirp, slirp_connection_info)
_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)\s")
_BOOT_TIMEOUT = 180.0
_COMMAND_TIMEOUT = 120.0
_DEATH_TIMEOUT = 2.0
_POLL = 0.05
_LOG_END = 2000


class HostError(LabError):
    """A host does not start, or died."""


class Host:
    """One emulated host. Get it from `running_host` or from a `Lab`; `wait_ready` before anything else.

    It holds nothing of a trio run, so that a host can serve one test after the other.

    Attributes:
        suite: the Debian release that it runs.
        cpu: its processor, as QEMU's -cpu.
    """

    def __init__(
        self,
        image: HostImage,
        cpu: str,
        memory_mib: int,
        directory: Path,
        emulator: str,
        cable: Sequence[str] = (),
    ) -> None:
        self.suite = image.suite
        self.cpu = cpu
        self._directory = directory
        self._agent_port = 0
        self._numbers = count()
        command = [emulator, "-name", str(self), "-M", "virt,virtualization=on,gic-version=3", "-cpu", cpu]
        command += ["-accel", "tcg,thread=multi", "-smp", "1", "-m", f"{memory_mib}M"]
        command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        command += [
            "-serial",
            f"file:{directory / 'serial'}",
            "-kernel",
            str(image.kernel),
            "-initrd",
            str(image.initrd),
        ]
        command += ["-append", "console=ttyAMA0 rdinit=/init quiet loglevel=4 panic=-1 oops=panic"]
        # Port 0: the kernel picks a free one, and `_forwarded` asks which.
        command += ["-netdev", f"user,id={_NETWORK},hostfwd=tcp:127.0.0.1:0-:{PORT}"]
        command += ["-device", f"virtio-net-pci,netdev={_NETWORK},romfile="]
        command += [*cable, "-qmp", f"unix:{directory / 'monitor'},server=on,wait=off"]
        self._process = Process(command, directory / "stderr")

    def __str__(self) -> str:
        # Without what separates the parts of QEMU's -name.
        return f"{self.suite}-{re.sub('[,=]', '-', self.cpu)}"

    # -- the host itself ---------------------------------------------------------------------------------------------

    def alive(self) -> bool:
        """Whether the host's QEMU runs: it ends with the host's kernel."""
        return self._process.returncode is None

    def serial_text(self) -> str:
        """What the host's kernel and its agent wrote on the console so far."""
        path = self._directory / "serial"
        return path.read_text(errors="replace") if path.exists() else ""

    async def wait_ready(self, limit: float = _BOOT_TIMEOUT) -> None:
        """Wait until the host has booted.

        Raises:
            HostError: it did not, or died since.
        """
        if self._agent_port and self.alive():
            return
        with trio.move_on_after(limit):
            while self.alive() and READY not in self.serial_text():
                await trio.sleep(_POLL)
            if self.alive():
                self._agent_port = await self._forwarded(PORT)
                return
            raise HostError(f"host {self} died: {self._last_words()}")
        raise HostError(f"host {self} did not boot within {limit} s: {self._last_words()}")

    def close(self) -> None:
        """Kill the host, and with it all that runs in it."""
        self._process.close()

    # -- commands ----------------------------------------------------------------------------------------------------

    @property
    def agent_port(self) -> int:
        """Where `tests.lab.remote` finds the host's agent."""
        return self._agent_port

    async def run(
        self, command: Sequence[str] | str, *, stdin: bytes = b"", check: bool = True, limit: float = _COMMAND_TIMEOUT
    ) -> CompletedCommand:
        """Run a command to its end.

        Args:
            command: program and arguments, or a line for the shell.
            stdin: its standard input.
            check: whether to raise if it fails.
            limit: seconds that it may take.

        Raises:
            CommandFailedError: it failed, and check says so.
            HostError: it took too long, or the host died.
        """
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        with trio.move_on_after(limit):
            async with self._blaming():
                completed = await run_command(self._agent_port, argv, stdin)
            if check and completed.returncode:
                raise CommandFailedError(completed)
            return completed
        raise HostError(f"{' '.join(argv)} in host {self} took more than {limit} s: {self._last_words()}")

    async def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file, and the folders above it."""
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"'
        await self.run(["sh", "-c", script, "put", path, f"{mode:o}"], stdin=data)

    async def get(self, path: str) -> bytes:
        """Read a file."""
        return (await self.run(["cat", path])).output

    # -- guests ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def guest(
        self,
        *,
        name: str = "guest",
        image: bytes | None = None,
        machine: str | None = None,
        cpu: str | None = "host",
        accel: str = "kvm",
        memory_mib: int = 64,
        smp: int = 1,
        incoming: str | None = None,
        paused: bool = False,
        extra: Sequence[str] = (),
    ) -> AsyncIterator[Vm]:
        """Run a guest on this host's KVM for the length of an `async with`.

        Addresses are this machine's: `Vm.migrate` to tcp:127.0.0.1:PORT reaches a proxy here, and `incoming` at
        tcp:127.0.0.1:0 is reached from here at `Vm.incoming_port`. Files of exec: and file: are the host's.

        Args:
            name: what messages call it.
            image: from `tests.lab.guest`; a destination needs none.
            machine: a versioned type; None for one that this host's QEMU and all newer ones know.
            cpu: -cpu; None for the machine's default.
            accel: -accel.
            memory_mib: RAM in MiB.
            smp: number of vCPUs; the guests use the first one only.
            incoming: -incoming, as for `tests.lab.vm.running_vm`.
            paused: -S.
            extra: further arguments.

        Raises:
            VmExitedError: QEMU refused its arguments.
            HostError: the host died.
        """
        path = None
        if image is not None:
            path = f"/tmp/guest-{next(self._numbers)}.bin"
            await self.put(path, image)
        async with (
            self._blaming(),
            running_guest(
                self,
                name=f"{name} on {self}",
                image_path=path,
                machine=machine or MACHINES.get(self.suite, MACHINE),
                cpu=cpu,
                accel=accel,
                memory_mib=memory_mib,
                smp=smp,
                incoming=incoming,
                paused=paused,
                extra=extra,
            ) as vm,
        ):
            yield vm

    async def forward(self, port: int) -> int:
        """Let this machine reach a TCP port of the host, and return the port on this machine's loopback."""
        await self._monitor(f"hostfwd_add {_NETWORK} tcp:127.0.0.1:0-:{port}")
        return await self._forwarded(port)

    async def stop_forward(self, port: int) -> None:
        """Undo `forward`, given what it returned."""
        await self._monitor(f"hostfwd_remove {_NETWORK} tcp:127.0.0.1:{port}")

    async def _forwarded(self, port: int) -> int:
        for near, far in _FORWARD.findall(await self._monitor("info usernet")):
            if int(far) == port:
                return int(near)
        raise HostError(f"host {self} does not forward port {port}")

    async def _monitor(self, command: str) -> str:
        # A connection for each command: a stream of trio would not outlive the test.
        async with await trio.open_unix_socket(str(self._directory / "monitor")) as stream:
            client = QmpClient(stream)
            await client.negotiate()
            return str(await client.execute("human-monitor-command", command_line=command))

    @asynccontextmanager
    async def _blaming(self) -> AsyncIterator[None]:
        """Say that the host died, if that is why something else failed."""
        try:
            yield
        except (LabError, OSError) as error:
            if isinstance(error, HostLostError):  # connections end a little before the process does
                with trio.move_on_after(_DEATH_TIMEOUT):
                    while self.alive():
                        await trio.sleep(_POLL)
            if self.alive():
                raise
            raise HostError(f"host {self} died: {self._last_words()}") from error

    def _last_words(self) -> str:
        stderr = (self._directory / "stderr").read_text(errors="replace").strip()
        serial = self.serial_text()
        panic = serial.find("Kernel panic")
        said = serial[-_LOG_END:] if panic < 0 else serial[panic : panic + _LOG_END]
        return "\n".join(filter(None, (stderr, said.strip()))) or "it said nothing"


async def emulator_of(cpu: str) -> str:
    """Return the path of a QEMU that emulates a processor: this machine's, or the lab's, unpacked first if need be."""
    if cpu.partition(",")[0] in NEWER_CPUS:
        return await trio.to_thread.run_sync(other_qemu, "trixie", _BINARY)
    return find_qemu(_BINARY)


@contextmanager
def started_host(
    image: HostImage, cpu: str, memory_mib: int, emulator: str, cable: Sequence[str] = ()
) -> Iterator[Host]:
    """Start a host that is killed at the end of a `with`, and its directory removed.

    `cable` has QEMU's arguments for a further network card, which is eth1 in the host.
    """
    with tempfile.TemporaryDirectory(prefix="vmstate-lab-") as folder:
        host = Host(image, cpu, memory_mib, Path(folder), emulator, cable)
        try:
            yield host
        finally:
            host.close()


@asynccontextmanager
async def running_host(*, cpu: str = A57_R1P3, suite: str = "bookworm", memory_mib: int = 1024) -> AsyncIterator[Host]:
    """Run a host for the length of an `async with`; its image is built first if it has to be.

    Args:
        cpu: QEMU's -cpu, such as "cortex-a57,midr=0x411fd073", "cortex-a72" or "neoverse-n1".
        suite: one of `tests.lab.images.SUITES`.
        memory_mib: RAM in MiB; a host takes some 300 for itself.

    Raises:
        ImageError: the image cannot be built.
        MissingQemuError: the outer QEMU is not installed.
        HostError: the host does not boot.
    """
    image = await trio.to_thread.run_sync(host_image, suite)
    with started_host(image, cpu, memory_mib, await emulator_of(cpu)) as host:
        await host.wait_ready()
        yield host
