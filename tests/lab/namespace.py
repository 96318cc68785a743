"""Hosts on one machine: a network, a host name, mounts and processes of their own, and nothing left behind.

Linux namespaces without names (`unshare`, `nsenter` of util-linux): they end with their last process, and the kernel
ends all of a process namespace's processes with its first one, which in turn dies with the test.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.process import Process
from tests.lab.qmp import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMIT = 10.0
_POLL = 0.01


class Namespace:
    """A shell script as the first process of a host of its own; the host ends when the script does.

    Args:
        script: for /bin/sh, with -eu. It has the machine's files, and may mount over them; /proc is its own.
        directory: gets a file `output` with what the script writes.

    Raises:
        LabError: Linux does not let this user have namespaces.
    """

    def __init__(self, script: str, directory: Path) -> None:
        self._output = directory / "output"
        namespaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._process = Process([program("unshare"), *namespaces, "sh", "-euc", script], self._output)
        try:
            self._first = self._wait_first()
            self.run("ip", "link", "set", "lo", "up")
        except BaseException:
            self._process.close()
            raise

    @property
    def returncode(self) -> int | None:
        """None while the host is up; then the script's exit status."""
        return self._process.returncode

    def text(self) -> str:
        """What the script wrote so far."""
        return self._output.read_text(errors="replace")

    def entering(self, *command: str) -> list[str]:
        """Return the command that runs another one in the host's network; it sees the machine's files."""
        return [program("nsenter"), f"--net=/proc/{self._process.pid}/ns/net", *command]

    def run(self, *command: str) -> str:
        """Run a short command in the host's network and return what it printed.

        Raises:
            LabError: it failed; the message holds what it said.
        """
        done = subprocess.run(self.entering(program(command[0]), *command[1:]), capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def wire(self, address: str, other: Namespace, others: str) -> None:
        """Lay a cable to another host; the addresses are written 192.0.2.1/24."""
        self.run(
            "ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(other._process.pid)
        )
        for host, own in (self, address), (other, others):
            host.run("ip", "address", "add", own, "dev", "cable")
            host.run("ip", "link", "set", "cable", "up")

    def close(self) -> None:
        """End all processes of the host, and wait until they are gone."""
        if self._process.returncode is None:
            # unshare waits for its child, and the kernel lets that one end after all others of its namespace.
            os.kill(self._first, signal.SIGKILL)
            deadline = time.monotonic() + _LIMIT
            while self._process.returncode is None and time.monotonic() < deadline:
                time.sleep(_POLL)
        self._process.close()

    def _wait_first(self) -> int:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        deadline = time.monotonic() + _LIMIT
        while self._process.returncode is None and time.monotonic() < deadline:
            if first := children.read_text():
                return int(first)
            time.sleep(_POLL)
        raise LabError(f"a host in namespaces of its own (root is needed): {self.text().strip() or 'does not start'}")


def program(name: str, package: str = "") -> str:
    """Return the path of a program, also of one that only root has in its PATH.

    Raises:
        LabError: it is not installed; the message names the package, if it is known.
    """
    folders: Sequence[str] = (os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")
    if path := shutil.which(name, path=os.pathsep.join(folders)):
        return path
    hint = f"; on Debian or Ubuntu: apt-get install {package}" if package else ""
    raise LabError(f"{name} is not installed{hint}")
