"""A played source and a read socket as destination: the time from the last byte of device state in to the last one out.

It needs nothing but `formats`, so that it runs as a program within an emulated host, too: there it starts proxies, and
no network but the host's own loopback is measured.

python3 played.py PLAN    prints the seconds of each round, by the names of the plan's ways and the sizes of their
                          streams, as one line of JSON
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from formats.channels.return_path import shut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

TIMEOUT = 120.0
_LOOPBACK = "127.0.0.1"
_BUFFER = 4 << 20
_SETTLE = 0.002
_START_LIMIT = 300.0
_POLL = 0.05
_PAUSE = 0.05
_LISTENING = re.compile(r"listening on tcp:127\.0\.0\.1:(\d+), ")


class Others(TypedDict):
    """Migrations that go on through the same proxy; both files are of the host that it runs in.

    Attributes:
        count: how many.
        head: file of what each sends first, into the first memory.
        piece: file of the memory that each sends again and again.
    """

    count: int
    head: str
    piece: str


class StreamPlan(TypedDict):
    """One stream.

    Attributes:
        size: what it is called.
        file: its file.
        before: bytes of it before the device state.
        after: bytes that the device state goes on as.
    """

    size: str
    file: str
    before: int
    after: int


class WayPlan(TypedDict):
    """One way that streams take.

    Attributes:
        name: what it is called.
        options: of `vmstate-proxy run`; None for no proxy.
        streams: what goes on it, one after the other.
        others: what goes through the same proxy meanwhile; None for nothing.
    """

    name: str
    options: list[str] | None
    streams: list[StreamPlan]
    others: Others | None


class Plan(TypedDict):
    """What is measured.

    Attributes:
        rounds: how often each way is gone, after a first time.
        ways: the ways, which take turns.
    """

    rounds: int
    ways: list[WayPlan]


def switch_over(before: bytes, state: bytes, after: int, port: int, back: socket.socket) -> float:
    """Play one migration to its end; return the seconds between the last byte in and the last byte out.

    Args:
        before: all of the stream before the device state.
        state: the device state to the stream's end.
        after: how many bytes of it come out; fewer where registers are left out.
        port: where the source goes, on the loopback.
        back: listens where the destination would.
    """
    with connected(port) as source:
        source.sendall(before)
        destination, _ = back.accept()
        with destination:
            destination.settimeout(TIMEOUT)
            receive(destination, len(before))
            # A source has its vCPUs' state together a moment after the last of its RAM.
            time.sleep(_SETTLE)
            # What does not fit into the sockets' buffers is sent as the carrier takes it; the clock starts at the end.
            source.sendall(state)
            started = time.perf_counter()
            receive(destination, after)
            seconds = time.perf_counter() - started
            destination.sendall(shut(0))
            destination.shutdown(socket.SHUT_WR)
            receive(source, len(shut(0)))
            source.shutdown(socket.SHUT_WR)
            while destination.recv(_BUFFER):
                pass
    return seconds


def connected(port: int) -> socket.socket:
    """Connect to a port of the loopback; what is sent goes at once, as small as it is."""
    source = socket.create_connection((_LOOPBACK, port), TIMEOUT)
    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return source


def receive(sock: socket.socket, length: int) -> None:
    """Receive just so many bytes, and throw them away; raises RuntimeError when the connection ends before."""
    buffer = bytearray(min(length, _BUFFER))
    while length:
        length -= sock.recv_into(buffer, min(length, _BUFFER)) or _gone()


def _gone() -> int:
    raise RuntimeError("the carrier closed the connection")


# --- within a host


def _measured(plan: Plan) -> dict[str, dict[str, list[float]]]:
    """Have the ways take turns; return the seconds of each and its streams, those of a first time first."""
    taken: dict[str, dict[str, list[float]]] = {way["name"]: {} for way in plan["ways"]}
    with ExitStack() as stack:
        ways = [(way, stack.enter_context(_way(way))) for way in plan["ways"]]
        for number in range(len(plan["ways"][0]["streams"])):
            for _ in range(1 + plan["rounds"]):
                for way, once in ways:
                    stream = way["streams"][number]
                    taken[way["name"]].setdefault(stream["size"], []).append(once(stream))
    return taken


@contextmanager
def _way(way: WayPlan) -> Iterator[Callable[[StreamPlan], float]]:
    """Start what is on a way, and provide what migrates a stream on it once."""
    with ExitStack() as stack:
        back = stack.enter_context(socket.create_server((_LOOPBACK, 0)))
        back.settimeout(TIMEOUT)
        port: int = back.getsockname()[1]
        if way["options"] is not None:
            port = stack.enter_context(_proxy(port, way["options"]))
        others: Callable[[], AbstractContextManager[None]] = nullcontext
        if way["others"] is not None:
            others = stack.enter_context(_other_migrations(way["others"], port, back))

        def once(plan: StreamPlan) -> float:
            stream = Path(plan["file"]).read_bytes()
            before, state = stream[: plan["before"]], stream[plan["before"] :]
            with others():
                return switch_over(before, state, plan["after"], port, back)

        yield once


@contextmanager
def _proxy(target: int, options: list[str]) -> Iterator[int]:
    """Run a proxy before a port, and provide its own, when it has loaded all that it needs."""
    log = Path(f"/tmp/proxy-{target}.log")
    command = [sys.executable, "-m", "proxy", "run", "--listen", f"tcp:{_LOOPBACK}:0"]
    command += ["--connect", f"tcp:{_LOOPBACK}:{target}", *options]
    with log.open("wb") as said, subprocess.Popen(command, stderr=said) as process:
        try:
            port = _listening(log, process)
            # It listens before it has loaded all; who sends what is no migration is turned away after that.
            with connected(port) as stranger, suppress(ConnectionResetError):
                stranger.settimeout(_START_LIMIT)
                stranger.sendall(b"no migration")
                stranger.recv(1)
            yield port
        except Exception as error:
            raise RuntimeError(log.read_text()) from error
        finally:
            process.kill()


def _listening(log: Path, process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + _START_LIMIT
    while (found := _LISTENING.search(log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the proxy does not listen")
        time.sleep(_POLL)
    return int(found[1])


@contextmanager
def _other_migrations(
    plan: Others, port: int, back: socket.socket
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Begin migrations, and provide what lets their memory trickle for the length of a `with`."""
    head, piece = Path(plan["head"]).read_bytes(), Path(plan["piece"]).read_bytes()
    with ExitStack() as stack:
        ways = []
        for _ in range(plan["count"]):
            source = stack.enter_context(connected(port))
            source.sendall(head)
            destination = stack.enter_context(back.accept()[0])
            destination.settimeout(TIMEOUT)
            receive(destination, len(head))
            ways.append((source, destination))
        # In a process of its own: in a thread it would have the interpreter when the one with the clock wants it.
        pid = os.fork()
        if not pid:
            with suppress(KeyboardInterrupt):
                _trickle(ways, piece)
            os._exit(1)
        try:
            os.kill(pid, signal.SIGSTOP)
            yield lambda: _going_on(pid)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _trickle(ways: list[tuple[socket.socket, socket.socket]], piece: bytes) -> None:
    """Have memory sent on each way in turn, until this process is killed."""
    while True:
        for source, destination in ways:
            source.sendall(piece)
            receive(destination, len(piece))
            time.sleep(_PAUSE)


@contextmanager
def _going_on(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGCONT)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGSTOP)


if __name__ == "__main__":
    print(json.dumps(_measured(json.loads(Path(sys.argv[1]).read_bytes()))))
