"""Network namespaces: hosts with addresses of their own, on this machine, that are gone when their test is.

A namespace lives as long as a process in it, which the kernel kills with the test; its links and rules go with it, and
no name is left behind. Without root, all is done in a user namespace.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lab.process import Process
from tests.lab.qmp import LabError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_PROGRAMS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ip": "iproute2",
    "nft": "nftables",
}
_START_TIMEOUT = 20.0
_POLL = 0.01
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Debian's users do not look where programs for administrators are."""

_MORTAL = ("setpriv", "--pdeathsig", "KILL")
"""A change of user namespace makes the kernel forget that a process dies with its parent."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace. Get it from `namespaces`.

    Attributes:
        pid: the process that holds it.
        wrapper: a command that runs each other one that is run in here.
    """

    pid: int
    wrapper: tuple[str, ...] = ()

    def command(self, *words: str) -> list[str]:
        """Return the command that runs another one in here."""
        return [*_entering(self.pid, "--net"), *self.wrapper, *words]

    async def run(self, *words: str, text: str = "") -> str:
        """Run a command in here to its end, with a text as its input; return what it wrote.

        Raises:
            LabError: It ended with an error.
        """
        program = shutil.which(words[0], path=_PATH) or words[0]
        done = await trio.run_process(
            self.command(program, *words[1:]),
            stdin=text.encode(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        output = (done.stdout + done.stderr).decode(errors="replace")
        if done.returncode:
            raise LabError(f"{' '.join(words)}: {output.strip()}\n{text}")
        return output


@asynccontextmanager
async def namespaces(count: int) -> AsyncIterator[list[Namespace]]:
    """Make network namespaces, each with its loopback up, for the length of an `async with`."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=_PATH) is None:
            raise LabError(f"{program} is not installed; on Debian or Ubuntu: apt-get install {package}")
    async with AsyncExitStack() as stack:
        holder: int | None = None
        if os.geteuid():
            holder = await stack.enter_async_context(_held(["unshare", "--user", "--map-root-user"]))
        found = []
        for _ in range(count):
            entering = [] if holder is None else _entering(holder)
            made = Namespace(await stack.enter_async_context(_held([*entering, "unshare", "--net"])))
            await made.run("ip", "link", "set", "lo", "up")
            found.append(made)
        yield found


async def join(
    left: Namespace, left_addresses: Sequence[str], right: Namespace, right_addresses: Sequence[str]
) -> None:
    """Lay a cable between two namespaces, with addresses, as 10.0.0.1/24, at its ends."""
    ends = (left, f"to{right.pid}", left_addresses), (right, f"to{left.pid}", right_addresses)
    (_, name, _), (_, other, _) = ends
    await left.run("ip", "link", "add", name, "type", "veth", "peer", "name", other, "netns", str(right.pid))
    for namespace, device, addresses in ends:
        await namespace.run("ip", "link", "set", device, "up")
        for address in addresses:
            # Without nodad, an IPv6 address is not used before a second of looking for others that have it.
            nodad = ("nodad",) if ":" in address else ()
            await namespace.run("ip", "address", "add", address, "dev", device, *nodad)


@asynccontextmanager
async def _held(entering: Sequence[str]) -> AsyncIterator[int]:
    """Keep a process in the namespaces that a command enters; return its id when it is in them."""
    with tempfile.TemporaryDirectory(prefix="vmstate-lab-") as folder:
        output = Path(folder) / "output"
        process = Process([*entering, *_MORTAL, "sleep", "infinity"], output)
        try:
            with trio.move_on_after(_START_TIMEOUT):
                while process.returncode is None:
                    if Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n":
                        break
                    await trio.sleep(_POLL)
                else:
                    raise LabError(f"a namespace cannot be made: {output.read_text()}")
            yield process.pid
        finally:
            process.close()


def _entering(pid: int, *which: str) -> list[str]:
    user = ("--user", "--preserve-credentials") if os.geteuid() else ()
    return ["nsenter", "--target", str(pid), *user, *which, "--", *_MORTAL]
