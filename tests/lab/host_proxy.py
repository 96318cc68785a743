"""vmstate-proxy inside an emulated host, where it can ask the host's KVM."""

from __future__ import annotations

import functools
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import asynccontextmanager, suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests.lab.cache import cache_folder
from tests.lab.host_guest import outside
from tests.lab.qmp import LabError
from tests.lab.remote import RemoteCommand, running_command
from tests.report_schema import checked_report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.lab.host import Host
    from tests.lab.remote import CompletedCommand

_ROOT = Path(__file__).parents[2]
_FOLDER = "/tmp/vmstate-proxy"
_DISTRIBUTIONS = ("click", "construct", "trio", "attrs", "sortedcontainers", "idna", "outcome", "sniffio")
"""What the commands for hosts import beside the standard library, and is pure Python."""

_COMPILED = ("msgspec",)
"""The same, and is not: it is asked for as wheels for arm64, of the versions of Python that the hosts have."""

_PYTHON_VERSIONS = ("3.11", "3.13", "3.14")
_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64")

_PYTHON = ("sh", "-c", f'cd {_FOLDER} && exec python3 -m proxy "$@"', "vmstate-proxy")
_LISTENING = re.compile(r"listening on tcp:\S+:(\d+), ")
_COMMAND_LIMIT = 120.0
_START_LIMIT = 90.0
_POLL = 0.05


async def vmstate_proxy_in(host: Host, *arguments: str, check: bool = True) -> CompletedCommand:
    """Run a command of vmstate-proxy in a host to its end; `check` raises unless it ends with 0."""
    await _install(host)
    return await host.run([*_PYTHON, *arguments], check=check, limit=_COMMAND_LIMIT)


async def run_python_in(host: Host, *arguments: str, limit: float = _COMMAND_LIMIT) -> CompletedCommand:
    """Run a Python program in a host that imports this project; arguments are its path there, and its own."""
    await _install(host)
    return await host.run(["env", f"PYTHONPATH={_FOLDER}", "python3", *arguments], limit=limit)


class HostProxy:
    """A `vmstate-proxy run` in a host. Get it from `running_proxy_in`."""

    def __init__(self, command: RemoteCommand, uri: str) -> None:
        self.uri = uri
        self._command = command

    def text(self) -> str:
        """What the proxy wrote on standard error so far."""
        return self._command.stderr.decode(errors="replace")

    def reports(self) -> list[dict[str, Any]]:
        """The reports written so far."""
        return [checked_report(line.decode()) for line in self._command.stdout.splitlines()]

    async def wait_reports(self, count: int, limit: float = 60) -> list[dict[str, Any]]:
        """Wait until that many migrations have ended."""
        with trio.move_on_after(limit):
            while len(self.reports()) < count:
                await trio.sleep(_POLL)
            return self.reports()
        raise LabError(f"{count} reports were expected: {self.text()}")

    async def wait_exit(self, limit: float = 60) -> int:
        """Wait until the proxy has ended and return its exit code."""
        with trio.move_on_after(limit):
            return await self._command.wait()
        raise LabError(f"the proxy still runs after {limit} s: {self.text()}")


@asynccontextmanager
async def running_proxy_in(
    host: Host, destination: str, *options: str, inside: bool = False
) -> AsyncIterator[HostProxy]:
    """Run a proxy in a host for the length of an `async with`; `uri` is where it is reached from this machine.

    Args:
        host: the destination's host.
        destination: the URI for --connect, as it is on this machine, or in the host.
        options: further options of `vmstate-proxy run`.
        inside: whether the destination is an address in the host.
    """
    await _install(host)
    run = [
        "run",
        "--listen",
        "tcp:0.0.0.0:0",
        "--connect",
        destination if inside else outside(destination),
        "--report",
        "-",
    ]
    async with running_command(host.agent_port, [*_PYTHON, *run, *options]) as command:
        inner = await _listening(command)
        port = await host.forward(inner)
        try:
            yield HostProxy(command, f"tcp:127.0.0.1:{port}")
        finally:
            with trio.move_on_after(_START_LIMIT, shield=True):
                await host.stop_forward(port)


@asynccontextmanager
async def transparent_proxy_in(host: Host, *options: str) -> AsyncIterator[HostProxy]:
    """Run a transparent proxy in a host for the length of an `async with`, and redirect to it what comes for QEMUs.

    Args:
        host: the destination's host; it has nftables.
        options: further options of `vmstate-proxy run`.
    """
    await _install(host)
    listen = ("--listen", "tcp:0.0.0.0:4444")
    rules = (await host.run([*_PYTHON, "transparent", "rules", *listen])).output
    run = ["run", "--transparent", *listen, "--report", "-"]
    async with running_command(host.agent_port, [*_PYTHON, *run, *options]) as command:
        await _listening(command)
        await host.run(["nft", "-f", "-"], stdin=rules)
        try:
            yield HostProxy(command, "")
        finally:
            with trio.move_on_after(_START_LIMIT, shield=True):
                await host.run("nft delete table inet vmstate_proxy")


async def _listening(command: RemoteCommand) -> int:
    with trio.move_on_after(_START_LIMIT):
        while command.returncode is None:
            if match := _LISTENING.search(command.stderr.decode(errors="replace")):
                return int(match[1])
            await trio.sleep(_POLL)
    raise LabError(f"the proxy does not listen: {command.stderr.decode(errors='replace')}")


async def _install(host: Host) -> None:
    if (await host.run(["test", "-d", _FOLDER], check=False)).returncode:
        unpack = f"mkdir {_FOLDER}.new && cd {_FOLDER}.new && tar xf - && mv {_FOLDER}.new {_FOLDER}"
        await host.run(unpack, stdin=await trio.to_thread.run_sync(_bundle))


@functools.cache
def _bundle() -> bytes:
    """Pack this project and what it imports."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for package in ("proxy", "formats"):
            _add(archive, _ROOT / package, package)
        for name in _DISTRIBUTIONS:
            for file in distribution(name).files or ():
                if file.suffix == ".py" and not file.is_absolute() and ".." not in file.parts:
                    archive.add(str(file.locate()), str(file))
        for wheel in _wheels():
            with zipfile.ZipFile(wheel) as files:
                for part in files.infolist():
                    if not part.is_dir():
                        info = tarfile.TarInfo(part.filename)
                        info.size = part.file_size
                        archive.addfile(info, files.open(part))
    return packed.getvalue()


def _wheels() -> list[Path]:
    """Return the wheels of what is compiled, from the lab's cache or fetched into it.

    Raises:
        LabError: pip cannot get them.
    """
    wanted = [f"{name}=={distribution(name).version}" for name in _COMPILED]
    folder = cache_folder() / "-".join(["wheels", *wanted])
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="wheels-new-") as new:
            for version in _PYTHON_VERSIONS:
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
                pip += ["--only-binary=:all:", "--python-version", version, "--dest", new]
                for platform in _PLATFORMS:
                    pip += ["--platform", platform]
                done = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise LabError(f"pip cannot get {' '.join(wanted)} for arm64: {done.stderr.strip()}")
            with suppress(OSError):  # another one was quicker
                Path(new).rename(folder)
                Path(new).mkdir()
    return sorted(folder.glob("*.whl"))


def _add(archive: tarfile.TarFile, folder: Path, name: str) -> None:
    archive.add(folder, name, filter=lambda info: None if "__pycache__" in info.name else info)
