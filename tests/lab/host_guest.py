"""A guest on the KVM of an emulated host, driven from this machine like any other `Vm`."""

from __future__ import annotations

import re
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import trio

from tests.lab.qmp import LabError, QmpClient, QmpClosedError
from tests.lab.remote import RemoteCommand, running_command
from tests.lab.vm import Vm, VmExitedError, loader_arguments, vm_arguments

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Mapping, Sequence

_BINARY = "qemu-system-aarch64"
OUTSIDE = "10.0.2.2"
"""This machine's loopback, as seen from a host (QEMU's user networking)."""
_LOOPBACK = re.compile(r"^tcp:(127\.0\.0\.1|localhost):")
_START_TIMEOUT = 90.0


class Reach(Protocol):
    """What a guest needs of its host."""

    @property
    def agent_port(self) -> int: ...

    async def forward(self, port: int) -> int: ...

    async def stop_forward(self, port: int) -> None: ...


class HostGuest(Vm):
    """A QEMU in a host. URIs name this machine's addresses and are translated to the host's."""

    def __init__(self, name: str, process: _GuestProcess, qmp: QmpClient, host: Reach) -> None:
        super().__init__(name, process, qmp)
        self._host = host
        self._forwards: dict[int, int] = {}

    async def listen(
        self,
        uri: str = "tcp:127.0.0.1:0",
        capabilities: Mapping[str, bool] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Start to listen, as `Vm.listen` does; this machine's loopback stands for the host's network."""
        await super().listen(_listening(uri), capabilities, parameters)

    async def incoming_port(self) -> int:
        """Return the TCP port of this machine's loopback at which QEMU takes a migration."""
        port = await super().incoming_port()
        if port not in self._forwards:
            self._forwards[port] = await self._host.forward(port)
        return self._forwards[port]

    async def migrate(
        self,
        uri: str,
        *,
        return_path: bool = True,
        capabilities: Mapping[str, bool] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Start a migration, as `Vm.migrate` does."""
        await super().migrate(outside(uri), return_path=return_path, capabilities=capabilities, parameters=parameters)

    async def stop_forwards(self) -> None:
        """Close the ports that `incoming_port` opened."""
        for port in self._forwards.values():
            await self._host.stop_forward(port)


class _GuestProcess:
    """QEMU's process in a host, as a `tests.lab.vm.VmProcess`. The guest's serial port is standard output."""

    def __init__(self, command: RemoteCommand) -> None:
        self._command = command

    @property
    def pid(self) -> int:
        return self._command.pid

    @property
    def returncode(self) -> int | None:
        return self._command.returncode

    async def wait(self) -> int:
        return await self._command.wait()

    def send_signal(self, number: signal.Signals) -> None:
        self._command.send_signal(number)

    def stderr_text(self) -> str:
        return self._command.stderr.decode(errors="replace")

    def serial_text(self) -> str:
        return self._command.stdout.decode(errors="replace")


@asynccontextmanager
async def running_guest(
    host: Reach,
    *,
    name: str,
    image_path: str | None,
    machine: str,
    cpu: str | None,
    accel: str,
    memory_mib: int,
    smp: int,
    incoming: str | None,
    paused: bool,
    extra: Sequence[str],
) -> AsyncIterator[HostGuest]:
    """Run a QEMU in a host for the length of an `async with`. See `tests.lab.host.Host.guest`."""
    incoming = None if incoming is None else _listening(incoming)
    arguments = vm_arguments(name, machine, cpu, accel, memory_mib, smp, incoming, paused=paused)
    arguments += ["-serial", "file:/proc/self/fd/1"]
    if image_path is not None:
        arguments += loader_arguments(image_path)
    async with AsyncExitStack() as stack:
        # QEMU dials out to its monitor: no port to choose in the host, nothing to poll for.
        listener = stack.enter_context(trio.socket.socket())
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monitor = ["-chardev", f"socket,id=qmp,host={OUTSIDE},port={port}", "-mon", "chardev=qmp,mode=control"]
        command = await stack.enter_async_context(
            running_command(host.agent_port, [_BINARY, *arguments, *monitor, *extra])
        )
        process = _GuestProcess(command)
        connection = await _accept(listener, process, name)
        client = QmpClient(await stack.enter_async_context(trio.SocketStream(connection)))
        vm = HostGuest(name, process, client, host)
        try:
            with trio.fail_after(_START_TIMEOUT):
                await client.negotiate()
        except QmpClosedError as error:
            code = await vm.wait_exit()
            raise VmExitedError(name, code, vm.stderr_text()) from error
        try:
            yield vm
        finally:
            with trio.move_on_after(_START_TIMEOUT, shield=True):
                await vm.stop_forwards()


async def _accept(listener: trio.socket.SocketType, process: _GuestProcess, name: str) -> trio.socket.SocketType:
    """Wait for QEMU's call, or for its end."""
    connection: trio.socket.SocketType | None = None
    with trio.move_on_after(_START_TIMEOUT):
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await process.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            connection, _ = await listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            nursery.cancel_scope.cancel()
    if connection is not None:
        return connection
    if process.returncode is not None:
        raise VmExitedError(name, process.returncode, process.stderr_text())
    raise LabError(f"{name}: QEMU did not start within {_START_TIMEOUT} s: {process.stderr_text()}")


def outside(uri: str) -> str:
    """Return how a host reaches an address on this machine's loopback."""
    return _LOOPBACK.sub(f"tcp:{OUTSIDE}:", uri)


def _listening(uri: str) -> str:
    return _LOOPBACK.sub("tcp:0.0.0.0:", uri)
