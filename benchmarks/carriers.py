"""What can stand between two QEMUs: nothing, vmstate-proxy, and proxies that read nothing of what they pass on."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lab.process import Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

ROOT = Path(__file__).parents[1]
_LISTEN = "0A"  # TCP_LISTEN, the fourth column of /proc/net/tcp
_START_LIMIT = 20.0
_POLL = 0.01
_WATCH = 0.05
_IDLE_POLLS = 4
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"  # where haproxy is, and not everybody looks
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

    @property
    def log(self) -> Path:
        """What the carrier says."""
        return self.folder / "carrier.log"


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
    """What a carrier used, from when it had started to when the migration had ended.

    Attributes:
        cpu: seconds of processor time, its children's among them.
        resident: bytes at most in memory.
    """

    cpu: float = 0.0
    resident: int = 0


def _vmstate_proxy(*options: str) -> Callable[[Way], Sequence[str | Path]]:
    def command(way: Way) -> Sequence[str | Path]:
        judging = ["--host", str(way.profile), "--allow-midr", way.midr, *options]
        ends = ["--listen", f"tcp:127.0.0.1:{way.port}", "--connect", f"tcp:127.0.0.1:{way.target}"]
        tls = [] if way.tls is None else ["--listen-tls", str(way.tls), "--connect-tls", str(way.tls)]
        return [sys.executable, "-m", "proxy", "run", *judging, *ends, *tls]

    return command


def _socat(*options: str) -> Callable[[Way], Sequence[str | Path]]:
    def command(way: Way) -> Sequence[str | Path]:
        ends = f"TCP-LISTEN:{way.port},bind=127.0.0.1,reuseaddr,fork", f"TCP:127.0.0.1:{way.target}"
        return ["socat", *options, *ends]

    return command


def _haproxy(*options: str, tuned: Sequence[str] = ()) -> Callable[[Way], Sequence[str | Path]]:
    def command(way: Way) -> Sequence[str | Path]:
        here, there = f"127.0.0.1:{way.port}", f"127.0.0.1:{way.target}"
        if way.tls is not None:
            # haproxy wants the key and the certificate in one file.
            for role in "server", "client":
                parts = [(way.tls / f"{role}-{part}.pem").read_text() for part in ("cert", "key")]
                (way.folder / f"{role}.pem").write_text("".join(parts))
            authority = way.tls / "ca-cert.pem"  # who the destination is, it cannot tell by an address
            here += f" ssl crt {way.folder / 'server.pem'} ca-file {authority} verify required"
            there += f" ssl crt {way.folder / 'client.pem'} ca-file {authority} verify required"
        configuration = way.folder / "haproxy.cfg"
        configuration.write_text(
            "global\n"
            + "".join(f"  {setting}\n" for setting in tuned)
            + "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            + "".join(f"  option {option}\n" for option in options)
            + f"listen migrations\n  bind {here}\n  server destination {there}\n"
        )
        return [shutil.which("haproxy", path=_PATH) or "haproxy", "-db", "-f", configuration]

    return command


DIRECT = Carrier("direct", None)
OURS = Carrier("vmstate-proxy", _vmstate_proxy())
OURS_OBSERVING = Carrier("vmstate-proxy, observing", _vmstate_proxy("--mode", "observe"))
SOCAT_USUAL = Carrier("socat, 8 KiB", _socat())
SOCAT = Carrier("socat", _socat("-b", "1048576"))
HAPROXY = Carrier("haproxy", _haproxy(tuned=["tune.bufsize 1048576"]))
HAPROXY_TLS = Carrier("haproxy", _haproxy())
HAPROXY_SPLICE = Carrier(
    "haproxy, splice", _haproxy("splice-request", "splice-response", tuned=["tune.pipesize 262144"])
)
CARRIERS = (DIRECT, OURS, SOCAT, HAPROXY, HAPROXY_SPLICE)
SETTINGS = (
    "socat has a buffer of 1 MiB (`-b 1048576`; its own is 8 KiB), haproxy `tune.bufsize 1048576` where it copies (16, "
    "256 and 1024 KiB were tried) and `tune.pipesize 262144` where it splices (64, 256 and 1024 KiB, and those with "
    "`tune.bufsize 262144`); with TLS, which has records of 16 KiB, it has its own settings."
)
"""What the others are run with: the best of what was tried."""


@asynccontextmanager
async def carrying(carrier: Carrier, way: Way) -> AsyncIterator[Spent]:
    """Run a carrier for the length of an `async with`; what it used is known after that."""
    spent = Spent()
    if carrier.command is None:
        yield spent
        return
    process = Process([str(word) for word in carrier.command(way)], way.log, cwd=ROOT)
    try:
        await _wait_listening(process, way)
        before = await _wait_idle(process.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_memory, process.pid, spent)
            yield spent
            while _children(process.pid):  # a child of socat is counted when it has been waited for
                await trio.sleep(_POLL)
            nursery.cancel_scope.cancel()
        spent.cpu = _cpu_seconds(process.pid) - before
    finally:
        process.close()


async def _wait_listening(process: Process, way: Way) -> None:
    """Look, and do not connect: a destination takes one connection only."""
    with trio.move_on_after(_START_LIMIT):
        while not listens(way.port) and process.returncode is None:
            await trio.sleep(_POLL)
    if not listens(way.port):
        raise RuntimeError(f"it does not listen: {way.log.read_text()}")


async def _wait_idle(pid: int) -> float:
    """Wait until a process that has begun to listen has loaded what else it needs; return what `_cpu_seconds` does."""
    spent, since = _cpu_seconds(pid), 0
    while since < _IDLE_POLLS:
        await trio.sleep(_WATCH)
        now = _cpu_seconds(pid)
        spent, since = now, since + 1 if now == spent else 0
    return spent


async def _watch_memory(pid: int, spent: Spent) -> None:
    while True:
        with suppress(FileNotFoundError, IndexError, ProcessLookupError):  # one that has just ended
            spent.resident = max(spent.resident, sum(map(_peak_resident, [pid, *_children(pid)])))
        await trio.sleep(_WATCH)


def _peak_resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def listens(port: int) -> bool:
    """Return whether anything listens on a port of IPv4."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any((words := line.split())[3] == _LISTEN and words[1].endswith(f":{port:04X}") for line in lines)


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and of its children that have ended."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) / _TICK  # utime, stime, cutime, cstime: proc(5), fields 14 to 17


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def free_port() -> int:
    """Return a port of the loopback that nothing listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
