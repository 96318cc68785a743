"""Real QEMUs for tests: start, ask, migrate, and always clean up."""

from __future__ import annotations

import signal
import socket
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio

from tests.lab.guest import COUNTER_ADDRESS, LOAD_ADDRESS, MIDR_ADDRESS, X86_COUNTER_ADDRESS
from tests.lab.process import Process, find_qemu
from tests.lab.qemus import other_qemu
from tests.lab.qmp import LabError, QmpClient, QmpClosedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tests.lab.netns import Namespace

_START_TIMEOUT = 20.0
_POLL = 0.02
_FINAL = frozenset({"completed", "failed", "cancelled", "postcopy-paused", "colo"})
_UNLIMITED_BANDWIDTH = 1 << 40


class VmExitedError(LabError):
    """QEMU is gone: the message holds its return code and its stderr.

    Attributes:
        name: which one.
        returncode: exit status, or minus a signal.
        stderr: what QEMU said.
    """

    def __init__(self, name: str, returncode: int, stderr: str) -> None:
        super().__init__(f"{name}: QEMU exited with {returncode}: {stderr.strip() or '(nothing on stderr)'}")
        self.name = name
        self.returncode = returncode
        self.stderr = stderr


class LabTimeoutError(LabError):
    """What was waited for did not happen in time."""


@dataclass(frozen=True, slots=True)
class MigrationOutcome:
    """How a migration ended for the source, in `query-migrate`'s words.

    Attributes:
        status: completed, failed, cancelled or postcopy-paused.
        error: QEMU's error-desc; empty if it gave none.
    """

    status: str
    error: str = ""


class VmProcess(Protocol):
    """A QEMU process, on this machine or in an emulated host, and what it writes."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...

    def send_signal(self, number: signal.Signals) -> None: ...

    def stderr_text(self) -> str: ...

    def serial_text(self) -> str: ...


class LocalProcess(Process):
    """A QEMU process on this machine; its output is in files."""

    def __init__(self, command: Sequence[str], directory: Path, pass_fds: Sequence[int] = ()) -> None:
        super().__init__(command, directory / "stderr", pass_fds)
        self._directory = directory

    def stderr_text(self) -> str:
        """What QEMU wrote on stderr so far."""
        return (self._directory / "stderr").read_text(errors="replace")

    def serial_text(self) -> str:
        """What the guest wrote on its serial port so far."""
        return (self._directory / "serial").read_text(errors="replace")


class Vm:
    """One running QEMU. Get it from `running_vm`, or from `tests.lab.host.Host.guest`."""

    def __init__(self, name: str, process: VmProcess, qmp: QmpClient, counter_address: int = COUNTER_ADDRESS) -> None:
        self.name = name
        self._counter_address = counter_address
        self._process = process
        self._qmp = qmp

    # -- the process -------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while QEMU runs; then its exit status, or minus a signal."""
        return self._process.returncode

    def exited(self) -> bool:
        """Whether QEMU is gone."""
        return self.returncode is not None

    async def wait_exit(self, limit: float = 30) -> int:
        """Wait until QEMU is gone and return its returncode.

        Raises:
            LabTimeoutError: it still runs after limit seconds.
        """
        with trio.move_on_after(limit):
            return await self._process.wait()
        raise LabTimeoutError(f"{self.name}: QEMU still runs after {limit} s")

    async def kill(self) -> None:
        """Kill QEMU with SIGKILL, as a crashed host would, and wait for its end."""
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Send QEMU a signal."""
        self._process.send_signal(number)

    def stderr_text(self) -> str:
        """What QEMU wrote on stderr so far."""
        return self._process.stderr_text()

    def serial_text(self) -> str:
        """What the guest wrote on its serial port so far."""
        return self._process.serial_text()

    # -- the monitor -------------------------------------------------------------------------------------------------

    @property
    def events(self) -> Sequence[Mapping[str, Any]]:
        """QMP events read so far, oldest first."""
        return self._qmp.events

    async def qmp(self, command: str, **arguments: Any) -> Any:  # noqa: ANN401 - any JSON, in both directions
        """Run a QMP command; underscores in argument names stand for hyphens.

        Raises:
            tests.lab.qmp.QmpError: QEMU refused the command.
            VmExitedError: QEMU is gone.
        """
        try:
            return await self._qmp.execute(command, **arguments)
        except QmpClosedError as error:
            code = await self.wait_exit()
            raise VmExitedError(self.name, code, self.stderr_text()) from error

    async def status(self) -> str:
        """Return the run state, such as running, paused, inmigrate, postmigrate."""
        reply = await self.qmp("query-status")
        return str(reply["status"])

    # -- the guest ---------------------------------------------------------------------------------------------------

    async def read_u64(self, address: int) -> int:
        """Read 64 bits of guest-physical memory."""
        # "0000000040300000: 0x000000000000002a"
        text = await self.qmp("human-monitor-command", command_line=f"xp /1gx {address:#x}")
        return int(str(text).partition(":")[2], 16)

    async def counter(self) -> int:
        """Read the guest's counter."""
        return await self.read_u64(self._counter_address)

    async def midr(self) -> int:
        """Read the processor id (MIDR_EL1) that the guest last saw."""
        return await self.read_u64(MIDR_ADDRESS)

    async def wait_counter_moves(self, limit: float = 30) -> int:
        """Wait until the counter grows, which shows that the guest runs, and return it.

        Raises:
            LabTimeoutError: it stood still for limit seconds.
        """
        first = await self.counter()
        with trio.move_on_after(limit):
            while True:
                now = await self.counter()
                if now > first:
                    return now
                await trio.sleep(_POLL)
        status = await self.status()
        raise LabTimeoutError(f"{self.name}: counter stood at {first} for {limit} s, status {status}")

    async def wait_midr(self, value: int, limit: float = 30) -> None:
        """Wait until the guest, which looks at each lap, has seen a processor id.

        Raises:
            LabTimeoutError: it saw another one for limit seconds.
        """
        with trio.move_on_after(limit):
            while (seen := await self.midr()) != value:
                await trio.sleep(_POLL)
            return
        raise LabTimeoutError(f"{self.name}: the guest reads MIDR_EL1 {seen:#x} instead of {value:#x}")

    # -- migration ---------------------------------------------------------------------------------------------------

    async def listen(
        self,
        uri: str = "tcp:127.0.0.1:0",
        capabilities: Mapping[str, bool] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Start to listen, for a Vm started with incoming="defer"; then ask `incoming_port`."""
        await self._configure(capabilities or {}, parameters or {})
        await self.qmp("migrate-incoming", uri=uri)

    async def incoming_port(self) -> int:
        """Return the TCP port that QEMU listens on for a migration."""
        reply = await self.qmp("query-migrate")
        return int(reply["socket-address"][0]["port"])

    async def migrate(
        self,
        uri: str,
        *,
        return_path: bool = True,
        capabilities: Mapping[str, bool] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Start a migration, with no bandwidth limit unless parameters set one.

        Args:
            uri: QEMU's migration URI; without a scheme QEMU assumes nothing, so give "tcp:", "exec:" or "unix:".
            return_path: whether the source waits for the destination's word.
            capabilities: further migration capabilities.
            parameters: migration parameters, such as {"max-bandwidth": 1 << 20}.
        """
        await self._configure(
            {"return-path": return_path, **(capabilities or {})},
            {"max-bandwidth": _UNLIMITED_BANDWIDTH, **(parameters or {})},
        )
        await self.qmp("migrate", uri=uri)

    async def wait_migration(self, limit: float = 90) -> MigrationOutcome:
        """Wait on the source for the end of the migration. A failure is an outcome, not an exception.

        Raises:
            LabTimeoutError: still under way after limit seconds.
        """
        reply: dict[str, Any] = {}
        with trio.move_on_after(limit):
            while True:
                reply = await self.qmp("query-migrate")
                if reply.get("status") in _FINAL:
                    return MigrationOutcome(reply["status"], reply.get("error-desc", ""))
                await trio.sleep(_POLL)
        raise LabTimeoutError(f"{self.name}: migration still {reply.get('status')} after {limit} s")

    async def _configure(self, capabilities: Mapping[str, bool], parameters: Mapping[str, Any]) -> None:
        if capabilities:
            states = [{"capability": name, "state": on} for name, on in capabilities.items()]
            await self.qmp("migrate-set-capabilities", capabilities=states)
        if parameters:
            await self.qmp("migrate-set-parameters", **parameters)


@asynccontextmanager
async def running_vm(
    *,
    name: str = "vm",
    binary: str = "qemu-system-aarch64",
    qemu: str | None = None,
    machine: str = "virt-7.2",
    cpu: str | None = "cortex-a57",
    accel: str = "tcg",
    memory_mib: int = 64,
    smp: int = 1,
    guest: bytes | None = None,
    bios: bytes | None = None,
    incoming: str | None = None,
    paused: bool = False,
    extra: Sequence[str] = (),
    namespace: Namespace | None = None,
) -> AsyncIterator[Vm]:
    """Run a QEMU for the length of an `async with`: killed at its end, its directory removed.

    Args:
        name: what messages call it.
        binary: a QEMU system emulator, looked up in PATH.
        qemu: a Debian release, one of `tests.lab.qemus.QEMUS`, whose QEMU to run in place of the one in PATH.
        machine: a versioned type, so that newer QEMUs load the stream as well.
        cpu: -cpu; None for the machine's default.
        accel: -accel.
        memory_mib: RAM in MiB.
        smp: number of vCPUs; the guests use the first one only.
        guest: an image from `tests.lab.guest`, entered at LOAD_ADDRESS; a destination needs none.
        bios: -bios, on both sides: `tests.lab.guest.x86_counter_guest`.
        incoming: -incoming; "tcp:127.0.0.1:0" (ask `Vm.incoming_port`), or "defer" (call `Vm.listen`).
        paused: -S.
        extra: further arguments.
        namespace: the network namespace that it runs in; None for this machine's own.

    Raises:
        MissingQemuError: the binary is not installed.
        ImageError: the other release's QEMU cannot be had.
        VmExitedError: QEMU refused its arguments.
    """
    program = find_qemu(binary) if qemu is None else await trio.to_thread.run_sync(other_qemu, qemu, binary)
    arguments = vm_arguments(name, machine, cpu, accel, memory_mib, smp, incoming, paused=paused)
    with tempfile.TemporaryDirectory(prefix="vmstate-lab-") as folder:
        directory = Path(folder)
        arguments += ["-serial", f"file:{directory / 'serial'}"]
        if guest is not None:
            image = directory / "guest.bin"
            image.write_bytes(guest)
            arguments += loader_arguments(str(image))
        if bios is not None:
            firmware = directory / "bios.bin"
            firmware.write_bytes(bios)
            arguments += ["-bios", str(firmware)]
        address = COUNTER_ADDRESS if bios is None else X86_COUNTER_ADDRESS
        command = [program, *arguments, *extra]
        command = namespace.command(*command) if namespace else command
        async with _started(name, command, directory, address) as vm:
            yield vm


def vm_arguments(
    name: str,
    machine: str,
    cpu: str | None,
    accel: str,
    memory_mib: int,
    smp: int,
    incoming: str | None,
    *,
    paused: bool,
) -> list[str]:
    """Return QEMU's arguments for what `running_vm` describes."""
    arguments = ["-name", name, "-machine", machine, "-accel", accel, "-smp", str(smp), "-m", f"{memory_mib}M"]
    arguments += ["-nodefaults", "-no-user-config", "-display", "none"]
    if cpu is not None:
        arguments += ["-cpu", cpu]
    if incoming is not None:
        arguments += ["-incoming", incoming]
    if paused:
        arguments += ["-S"]
    return arguments


def loader_arguments(path: str) -> list[str]:
    """Return QEMU's arguments that put a guest image in place and have vCPU 0 enter it."""
    return ["-device", f"loader,file={path},addr={LOAD_ADDRESS:#x},cpu-num=0,force-raw=on"]


@asynccontextmanager
async def _started(name: str, command: Sequence[str], directory: Path, counter_address: int) -> AsyncIterator[Vm]:
    """Start QEMU with a QMP monitor on a socket pair: nothing to poll for, and end of file when QEMU dies."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            monitor = ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
            process = LocalProcess([*command, *monitor], directory, [theirs.fileno()])
        try:
            client = QmpClient(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
            vm = Vm(name, process, client, counter_address)
            try:
                with trio.fail_after(_START_TIMEOUT):
                    await client.negotiate()
            except QmpClosedError as error:
                code = await vm.wait_exit()
                raise VmExitedError(name, code, vm.stderr_text()) from error
            yield vm
        finally:
            process.close()


def wire_uri(port: int) -> str:
    """Return the migration URI of a port on this machine."""
    return f"tcp:127.0.0.1:{port}"
