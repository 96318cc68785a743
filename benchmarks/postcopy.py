"""How long a page takes that a guest waits for in postcopy: from its request until all of it is there.

Both ends are played, each by a process of its own, so that the delay is the carrier's and not Python's here.
"""

from __future__ import annotations

import multiprocessing
import socket
import struct
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import trio

from benchmarks import page
from benchmarks.carriers import DIRECT, HAPROXY_SPLICE, OURS, SOCAT, Carrier, Way, carrying, free_port
from benchmarks.goals import POSTCOPY, Goal
from benchmarks.switchover import CAPTURE, HOST, MIDR
from formats.channels.return_path import MessageType, shut
from tests.proxy.helpers import live, short
from tests.proxy.live.test_postcopy import postcopied
from tests.streams import ram_page

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from multiprocessing.connection import Connection
    from typing import Self

_REQUESTS = 2000
_WARM_UP = 100
_PAGE = 4096
_REQUEST = struct.Struct(">HHQI")
_RECORD = len(ram_page(0, bytes(_PAGE)))
_MEMORY = b"".join(ram_page(index * _PAGE, b"\x5a" * _PAGE) for index in range(256))
_TIMEOUT = 60.0
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class _Figures:
    """How long pages took, in microseconds.

    Attributes:
        median: every other one.
        percentile_99: all but one of a hundred, at most.
    """

    median: float
    percentile_99: float

    @classmethod
    def of(cls, taken: Sequence[float]) -> Self:
        return cls(median(taken), quantiles(taken, n=100)[-1])

    def over(self, direct: Self) -> Self:
        return replace(
            self, median=self.median - direct.median, percentile_99=self.percentile_99 - direct.percentile_99
        )

    def cells(self) -> list[str]:
        return [f"{self.median:.0f} µs", f"{self.percentile_99:.0f} µs"]


@dataclass(frozen=True, slots=True)
class Pages:
    """How the pages come that are asked for.

    Attributes:
        name: as in the table.
        preempt: on a postcopy-preempt channel, and not on the main one.
        flows: whether the rest of memory flows meanwhile, on the main channel, as fast as it can.
    """

    name: str
    preempt: bool
    flows: bool = False


PAGES = (
    Pages("on the main channel", preempt=False),
    Pages("on a preempt channel", preempt=True),
    Pages("on a preempt channel, while memory flows", preempt=True, flows=True),
)


async def measured(rounds: int, say: Callable[[str], None]) -> tuple[list[Goal], str]:
    """Measure all; return the goals and the section of the page.

    Args:
        rounds: migrations for each way that pages come and each carrier; the carriers take turns.
        say: is told how far it is.
    """
    goals, rows = [], []
    for pages in PAGES:
        taken: dict[Carrier, list[float]] = {carrier: [] for carrier in (DIRECT, OURS, HAPROXY_SPLICE, SOCAT)}
        for _ in range(rounds):
            for carrier, so_far in taken.items():
                so_far += await _migration(pages, carrier)
        direct = _Figures.of(taken[DIRECT])
        for carrier, each in taken.items():
            figures = _Figures.of(each)
            say(f"postcopy, {pages.name}, {carrier.name}: {', '.join(figures.cells())}")
            rows.append([pages.name, carrier.name, *figures.cells(), *figures.over(direct).cells()])
        if not pages.flows:
            added = _Figures.of(taken[OURS]).over(direct).median
            goals.append(Goal(f"Postcopy, a page {pages.name}: median, over direct", added, 150, "µs", why=POSTCOPY))
    head = ["page", "through", "median", "99th percentile", "median, over direct", "99th percentile, over direct"]
    return goals, (
        f"## Postcopy: page requests\n\nFrom a page's request until all of it is there: {_REQUESTS} requests a round, "
        "one after the other. Both ends are played: what a QEMU takes to find a page, and to place it, is left out.\n\n"
        f"{page.table(head, rows)}"
    )


async def _migration(pages: Pages, carrier: Carrier) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="vmstate-bench-") as name, socket.create_server(("127.0.0.1", 0)) as back:
        back.settimeout(_TIMEOUT)
        target = back.getsockname()[1]
        way = Way(target if carrier.command is None else free_port(), target, Path(name), HOST, MIDR)
        async with carrying(carrier, way):
            return await trio.to_thread.run_sync(_played, pages, way, back)


@cache
def _stream() -> bytes:
    """Return a stream that has gone over to postcopy."""
    return postcopied(live(short(CAPTURE)))


def _played(pages: Pages, way: Way, back: socket.socket) -> list[float]:
    """Go over to postcopy, and have processes play the ends; return what the destination's has measured."""
    here, there = _fork.Pipe(duplex=False)
    with ExitStack() as stack:
        source, destination = map(stack.enter_context, _connection(way, back, _stream()))
        answers, comes = source, destination
        if pages.preempt:
            answers, comes = map(stack.enter_context, _connection(way, back, b""))
        ends = [
            _fork.Process(target=_answer, args=(source, answers)),
            _fork.Process(target=_ask, args=(destination, comes, there)),
        ]
        if pages.flows:
            ends += [
                _fork.Process(target=_pour, args=(source,)),
                _fork.Process(target=_take, args=(destination,)),
            ]
        for end in ends:
            end.start()
    taken: list[float] = here.recv() if here.poll(_TIMEOUT) else []
    for end in ends:
        end.join(_TIMEOUT)
        if end.exitcode != 0:
            end.kill()
            raise RuntimeError("the migration broke off")
    return taken


def _connection(way: Way, back: socket.socket, opening: bytes) -> tuple[socket.socket, socket.socket]:
    """Connect through the carrier, and send what comes first; return the source's socket and the destination's."""
    source = socket.create_connection(("127.0.0.1", way.port), _TIMEOUT)
    source.sendall(opening)
    destination, _ = back.accept()
    for sock in source, destination:
        sock.settimeout(_TIMEOUT)
    _receive(destination, len(opening))
    return source, destination


def _answer(main: socket.socket, pages: socket.socket) -> None:
    """Play the source, which sends each page that it is asked for."""
    content = bytes(range(256)) * (_PAGE // 256)
    for _ in range(_WARM_UP + _REQUESTS):
        _, _, offset, _ = _REQUEST.unpack(_receive(main, _REQUEST.size))
        pages.sendall(ram_page(offset, content))
    _receive(main, len(shut(0)))
    _close({main, pages})


def _ask(main: socket.socket, pages: socket.socket, there: Connection) -> None:
    """Play the destination, whose guest needs one page after the other, and send the microseconds that each takes."""
    taken = []
    for number in range(_WARM_UP + _REQUESTS):
        request = _REQUEST.pack(MessageType.REQ_PAGES, _REQUEST.size - 4, number * _PAGE, _PAGE)
        started = time.perf_counter()
        main.sendall(request)
        _receive(pages, _RECORD)
        taken.append((time.perf_counter() - started) * 1e6)
    main.sendall(shut(0))
    _close({main, pages})
    there.send(taken[_WARM_UP:])


def _pour(main: socket.socket) -> None:
    """Send memory until the source's other process has closed the channel."""
    with suppress(BrokenPipeError):
        while True:
            main.sendall(_MEMORY)


def _take(main: socket.socket) -> None:
    """Take memory to its end."""
    buffer = bytearray(len(_MEMORY))
    while main.recv_into(buffer):
        pass


def _close(socks: Collection[socket.socket]) -> None:
    """Say that no more comes, and wait for the other end to say so."""
    for sock in socks:
        sock.shutdown(socket.SHUT_WR)
    for sock in socks:
        while sock.recv(_PAGE):
            pass


def _receive(sock: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        more = sock.recv(length - len(received))
        if not more:
            raise RuntimeError("the carrier closed the connection")
        received += more
    return received
