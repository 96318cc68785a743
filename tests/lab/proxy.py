"""The proxy as its users run it: a process of its own, asked over its files and signals."""

from __future__ import annotations

import re
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests.lab.process import Process
from tests.lab.qmp import LabError
from tests.report_schema import checked_report

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Sequence

    from tests.lab.netns import Namespace

_LISTENING = re.compile(r"listening on (?:tcp:(\S+):(\d+)|(unix:\S+)),")
_START_TIMEOUT = 20.0
_POLL = 0.02
_ROOT = Path(__file__).parents[2]


class Proxy:
    """One running `vmstate-proxy run`. Get it from `running_proxy`."""

    def __init__(self, directory: Path, process: Process) -> None:
        self.log = directory / "output"
        self.report = directory / "report"
        self._process = process
        self.uri = ""

    async def wait_listening(self) -> None:
        """Wait until the proxy listens, and note its URI."""
        with trio.move_on_after(_START_TIMEOUT):
            while self._process.returncode is None:
                if match := _LISTENING.search(self.text()):
                    self.uri = match[3] or f"tcp:{match[1]}:{match[2]}"
                    return
                await trio.sleep(_POLL)
        raise LabError(f"the proxy does not listen (exit code {self._process.returncode}): {self.text()}")

    def text(self) -> str:
        """What the proxy wrote on standard error so far."""
        return self.log.read_text()

    def reports(self) -> list[dict[str, Any]]:
        """The reports written so far."""
        return [checked_report(line) for line in self.report.read_text().splitlines()]

    async def wait_reports(self, count: int, limit: float = 60) -> list[dict[str, Any]]:
        """Wait until that many migrations ended."""
        with trio.move_on_after(limit):
            while len(self.reports()) < count:
                await trio.sleep(_POLL)
        if len(self.reports()) < count:
            raise LabError(f"{count} reports were expected, the proxy wrote {len(self.reports())}: {self.text()}")
        return self.reports()

    async def wait_text(self, text: str, limit: float = 60) -> None:
        """Wait until the proxy has written that text on standard error."""
        with trio.move_on_after(limit):
            while text not in self.text():
                await trio.sleep(_POLL)
        if text not in self.text():
            raise LabError(f"the proxy did not say {text!r}: {self.text()}")

    async def wait_exit(self, limit: float = 60) -> int:
        """Wait until the proxy has ended and return its exit code."""
        with trio.move_on_after(limit):
            return await self._process.wait()
        raise LabError(f"the proxy still runs after {limit} s: {self.text()}")

    def send_signal(self, number: signal.Signals) -> None:
        """Send the proxy a signal."""
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.returncode is not None

    def resources(self) -> tuple[int, int, int]:
        """How many descriptors and threads it has, and how many KiB are resident."""
        proc = Path(f"/proc/{self.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return len(list((proc / "fd").iterdir())), int(status["Threads"]), int(status["VmRSS"].split()[0])

    def peak_resident_bytes(self) -> int:
        """The most memory that the proxy has had resident so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10


@asynccontextmanager
async def running_proxy(
    destination: str | None,
    *options: str,
    listen: str = "tcp:127.0.0.1:0",
    namespace: Namespace | None = None,
    entering: Sequence[str] = (),
    folder: Path | None = None,
) -> AsyncIterator[Proxy]:
    """Run a proxy for the length of an `async with`.

    Args:
        destination: the URI for --connect; None for --transparent.
        options: further options of `vmstate-proxy run`.
        listen: the URI for --listen.
        namespace: the network namespace that it runs in; None for this machine's own.
        entering: what stands before the command, such as `tests.lab.namespace.Namespace.entering()`.
        folder: where its log and its report are, in a folder of their own; None for where all temporary files are.
    """
    with tempfile.TemporaryDirectory(prefix="vmstate-lab-", dir=folder) as own:
        directory = Path(own)
        command = [*entering, sys.executable, "-m", "proxy", "run", "--listen", listen]
        command += ["--transparent"] if destination is None else ["--connect", destination]
        command += ["--report", str(directory / "report"), *options]
        process = Process(namespace.command(*command) if namespace else command, directory / "output", cwd=_ROOT)
        try:
            proxy = Proxy(directory, process)
            await proxy.wait_listening()
            yield proxy
        finally:
            process.close()


async def vmstate_proxy(*arguments: str) -> tuple[int, str]:
    """Run a command of vmstate-proxy to its end; return its exit code and all that it wrote."""
    with tempfile.TemporaryDirectory(prefix="vmstate-lab-") as folder:
        output = Path(folder) / "output"
        process = Process([sys.executable, "-m", "proxy", *arguments], output, cwd=_ROOT)
        try:
            return await process.wait(), output.read_text()
        finally:
            process.close()
