"""What can stand between two QEMUs: nothing, vmstate-proxy, and proxies that read nothing of what they pass on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lab.process import _die_with_parent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

ROOT = Path(__file__).parents[1]
_LISTEN = "0A"  # TCP_LISTEN, the fourth column of /proc/net/tcp
_START_LIMIT = 20.0
_POLL = 0.01
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Way:
    """Where a carrier listens and where it leads to, on the loopback.

    Attributes:
        port: where the source goes.
        target: the destination's port.
        folder: for its files.
        profile: the destination's host profile.
        midr: the processor id that the source may have; "none" for TCG.
        tls: a folder with credentials of both roles; None for plain text.
    """

    port: int
    target: int
    folder: Path
    profile: Path
    midr: str = "none"
    tls: Path | None = None


@dataclass(frozen=True, slots=True)
class Carrier:
    """One thing that can carry a migration.

    Attributes:
        name: as in the tables.
        command: makes its command line; None where there is nothing between.
    """

    name: str
    command: Callable[[Way], Sequence[str | Path]] | None


@dataclass(slots=True)
class Spent:
    """What a carrier used, from when it listened to when the migration had ended.

    Attributes:
        cpu: seconds of processor time, its children's among them.
        resident: bytes at most in memory.
    """

    cpu: float = 0.0
    resident: int = 0


def _vmstate_proxy(way: Way) -> Sequence[str | Path]:
    command: list[str | Path] = [sys.executable, "-m", "proxy", "run", "--host", way.profile, "--allow-midr", way.midr]
    command += ["--listen", f"tcp:127.0.0.1:{way.port}", "--connect", f"tcp:127.0.0.1:{way.target}"]
    if way.tls is not None:
        command += ["--listen-tls", way.tls, "--connect-tls", way.tls]
    return command


def _socat(way: Way) -> Sequence[str | Path]:
    return ["socat", f"TCP-LISTEN:{way.port},bind=127.0.0.1,reuseaddr,fork", f"TCP:127.0.0.1:{way.target}"]


def _haproxy(*options: str) -> Callable[[Way], Sequence[str | Path]]:
    def command(way: Way) -> Sequence[str | Path]:
        here, there = f"127.0.0.1:{way.port}", f"127.0.0.1:{way.target}"
        if way.tls is not None:
            # haproxy wants the key and the certificate in one file.
            for role in "server", "client":
                parts = [(way.tls / f"{role}-{part}.pem").read_text() for part in ("cert", "key")]
                (way.folder / f"{role}.pem").write_text("".join(parts))
            authority = way.tls / "ca-cert.pem"
            here += f" ssl crt {way.folder / 'server.pem'} ca-file {authority} verify required"
            there += f" ssl crt {way.folder / 'client.pem'} ca-file {authority} verify required verifyhost 127.0.0.1"
        configuration = way.folder / "haproxy.cfg"
        configuration.write_text(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            + "".join(f"  option {option}\n" for option in options)
            + f"listen migrations\n  bind {here}\n  server destination {there}\n"
        )
        return ["haproxy", "-db", "-f", configuration]

    return command


DIRECT = Carrier("direct", None)
OURS = Carrier("vmstate-proxy", _vmstate_proxy)
SOCAT = Carrier("socat", _socat)
HAPROXY = Carrier("haproxy", _haproxy())
HAPROXY_SPLICE = Carrier("haproxy, splice", _haproxy("splice-request", "splice-response"))
CARRIERS = (DIRECT, OURS, SOCAT, HAPROXY, HAPROXY_SPLICE)


@asynccontextmanager
async def carrying(carrier: Carrier, way: Way) -> AsyncIterator[Spent]:
    """Run a carrier for the length of an `async with`; what it used is known after that."""
    spent = Spent()
    if carrier.command is None:
        yield spent
        return
    with (way.folder / "carrier.log").open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in carrier.command(way)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            preexec_fn=_die_with_parent,
        )
    try:
        await _wait_listening(process, way)
        before = _cpu_seconds(process.pid)
        yield spent
        # A child of socat is counted when it has been waited for.
        while _children(process.pid):
            await trio.sleep(_POLL)
    finally:
        process.send_signal(signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    spent.cpu = usage.ru_utime + usage.ru_stime - before
    spent.resident = usage.ru_maxrss << 10


async def _wait_listening(process: subprocess.Popen[bytes], way: Way) -> None:
    """Look, and do not connect: a destination takes one connection only."""
    limit = time.monotonic() + _START_LIMIT
    while not listens(way.port):
        if process.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f"{process.args!r} does not listen: {(way.folder / 'carrier.log').read_text()}")
        await trio.sleep(_POLL)


def listens(port: int) -> bool:
    """Return whether anything listens on a port of IPv4."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any((words := line.split())[3] == _LISTEN and words[1].endswith(f":{port:04X}") for line in lines)


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and of its children that have ended."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) / _TICK  # utime, stime, cutime, cstime: proc(5), fields 14 to 17


def _children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()


def free_port() -> int:
    """Return a port of the loopback that nothing listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
