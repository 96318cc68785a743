"""A QEMU process that cannot outlive the test."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import trio

from tests.lab.qmp import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
_PACKAGES = {"qemu-system-aarch64": "qemu-system-arm", "qemu-system-x86_64": "qemu-system-x86"}


class MissingQemuError(LabError):
    """The QEMU binary is not installed."""


def find_qemu(binary: str) -> str:
    """Return the path of a QEMU binary.

    Raises:
        MissingQemuError: not installed; the message names the Debian package.
    """
    if path := shutil.which(binary):
        return path
    package = _PACKAGES.get(binary, "qemu-system")
    raise MissingQemuError(f"{binary} is not installed; on Debian or Ubuntu: apt-get install {package}")


class Process:
    """A child that the kernel kills when its parent dies.

    `trio.lowlevel.open_process` will not do: it forks in a worker thread, and PR_SET_PDEATHSIG fires when that
    *thread* ends (prctl(2)), seconds later. So fork here, and wait on a pidfd.
    """

    def __init__(
        self, command: Sequence[str], stderr: Path, pass_fds: Sequence[int] = (), cwd: Path | None = None
    ) -> None:
        with stderr.open("wb") as sink:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                pass_fds=pass_fds,
                cwd=cwd,
                preexec_fn=_die_with_parent,
            )
        self._pidfd = os.pidfd_open(self._popen.pid)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; then the exit status, or minus the signal that ended it."""
        return self._popen.poll()

    async def wait(self) -> int:
        """Wait for the end and return the returncode."""
        while (code := self._popen.poll()) is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process ended before."""
        self._popen.send_signal(number)

    def close(self) -> None:
        """Kill the process if it still runs, and reap it."""
        if self._pidfd < 0:
            return
        self._popen.kill()
        self._popen.wait()
        os.close(self._pidfd)
        self._pidfd = -1


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
