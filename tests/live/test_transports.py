"""What migrations come and go over besides TCP, between real QEMUs: Unix sockets, inherited ones, QEMU's exec:."""

from __future__ import annotations

import shlex
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.lab.guest import counter_guest
from tests.lab.process import Process
from tests.lab.qemus import other_qemu
from tests.lab.vm import Vm, running_vm, wire_uri
from tests.live.helpers import A57_TO_A72, learn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
OWN = "qemu-system-aarch64"
RETURN_PATH = {"capability": "return-path", "state": True}
ALLOWED = ("--allow-midr", "none", *A57_TO_A72)


@asynccontextmanager
async def pair(incoming: str, binary: str = OWN, cpu: str = "cortex-a72") -> AsyncIterator[tuple[Vm, Vm]]:
    async with (
        running_vm(name="source", binary=binary, cpu="cortex-a57", guest=counter_guest(touch_pages=500)) as source,
        running_vm(name="destination", binary=binary, cpu=cpu, incoming=incoming) as destination,
    ):
        await source.wait_counter_moves()
        yield source, destination


async def arrives(source: Vm, destination: Vm) -> None:
    outcome = await source.wait_migration()
    assert outcome.status == "completed", outcome
    left = await source.counter()
    assert await destination.wait_counter_moves() > left


def run(profile: str, listen: str, connect: str) -> list[str]:
    options = ["--host", profile, *ALLOWED, "--once"]
    return [sys.executable, "-m", "proxy", "run", "--listen", listen, "--connect", connect, *options]


async def listening(process: Process, output: Path) -> None:
    """Wait until the proxy listens."""
    with trio.fail_after(20):
        while "listening on" not in output.read_text():
            assert process.returncode is None, output.read_text()
            await trio.sleep(0.02)


async def test_unix_sockets(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    profile, output = await learn(tmp_path, "cortex-a72"), tmp_path / "output"
    async with pair(f"unix:{far}") as (source, destination):
        process = Process(run(profile, f"unix:{near}", f"unix:{far}"), output, cwd=ROOT)
        try:
            await listening(process, output)
            await source.migrate(f"unix:{near}")
            await arrives(source, destination)
            assert await process.wait() == 0, output.read_text()
        finally:
            process.close()
    assert not near.exists()


async def test_an_abstract_unix_socket(tmp_path: Path) -> None:
    """Only the form with `channels`, of QEMU 8.2 and newer, knows abstract names."""
    far, output, name = tmp_path / "far", tmp_path / "output", f"vmstate-{tmp_path.name}"
    qemu = other_qemu("trixie", "qemu-system-aarch64")
    async with pair(f"unix:{far}", qemu, "cortex-a57") as (source, destination):
        command = ["run", "--listen", f"unix:@{name}", "--connect", f"unix:{far}", "--mode", "observe", "--once"]
        process = Process([sys.executable, "-m", "proxy", *command], output, cwd=ROOT)
        try:
            await listening(process, output)
            address = {"transport": "socket", "type": "unix", "path": name, "abstract": True}
            await source.qmp("migrate-set-capabilities", capabilities=[RETURN_PATH])
            await source.qmp("migrate", channels=[{"channel-type": "main", "addr": address}])
            await arrives(source, destination)
            assert await process.wait() == 0, output.read_text()
        finally:
            process.close()


@pytest.mark.parametrize("listens", [True, False], ids=["listening", "connected"])
async def test_an_inherited_socket(tmp_path: Path, listens: bool) -> None:
    profile, output = await learn(tmp_path, "cortex-a72"), tmp_path / "output"
    async with pair("tcp:127.0.0.1:0") as (source, destination):
        connect = wire_uri(await destination.incoming_port())
        with socket.socket() as front:
            front.bind(("127.0.0.1", 0))
            front.listen()
            uri = wire_uri(front.getsockname()[1])
            inherited = front
            if not listens:
                await source.migrate(uri)
                inherited, _ = await trio.to_thread.run_sync(front.accept)
            with inherited:
                command = run(profile, f"fd:{inherited.fileno()}", connect)
                process = Process(command, output, (inherited.fileno(),), cwd=ROOT)
            try:
                if listens:
                    await listening(process, output)
                    await source.migrate(uri)
                await arrives(source, destination)
                assert await process.wait() == 0, output.read_text()
            finally:
                process.close()


async def test_sockets_that_systemd_passes(tmp_path: Path) -> None:
    """As its activation does: from descriptor 3 on, with the process id in the environment."""
    profile, output = await learn(tmp_path, "cortex-a72"), tmp_path / "output"
    async with pair("tcp:127.0.0.1:0") as (source, destination):
        connect = wire_uri(await destination.incoming_port())
        with socket.socket() as front:
            front.bind(("127.0.0.1", 0))
            front.listen()
            command = shlex.join(run(profile, "systemd:", connect))
            number = front.fileno()
            activate = f"exec 3<&{number}; export LISTEN_PID=$$ LISTEN_FDS=1; exec {command}"
            process = Process(["bash", "-c", activate], output, (number,), cwd=ROOT)
            try:
                await listening(process, output)
                await source.migrate(wire_uri(front.getsockname()[1]))
                await arrives(source, destination)
                assert await process.wait() == 0, output.read_text()
            finally:
                process.close()


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_qemus_exec(tmp_path: Path, side: str) -> None:
    """One of the QEMUs starts the proxy, and talks to it over its standard input and output."""
    profile, errors = await learn(tmp_path, "cortex-a72"), tmp_path / "errors"
    port = unused_port()
    at_destination = run(profile, f"tcp:127.0.0.1:{port}", "stdio:")
    incoming = f"exec:cd {ROOT} && exec {shlex.join(at_destination)} 2>{errors}"
    async with pair(incoming if side == "destination" else "tcp:127.0.0.1:0") as (source, destination):
        if side == "source":
            command = run(profile, "stdio:", wire_uri(await destination.incoming_port()))
            uri = f"exec:cd {ROOT} && exec {shlex.join(command)} 2>{errors}"
        else:
            uri = wire_uri(port)
            with trio.fail_after(20):
                while not errors.exists() or "listening on" not in errors.read_text():
                    await trio.sleep(0.02)
        await source.migrate(uri)
        await arrives(source, destination)
        with trio.fail_after(10):
            while "rewritten: " not in errors.read_text():
                await trio.sleep(0.02)


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
