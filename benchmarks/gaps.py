"""How long a migration that flows stands still while others switch over through the same proxy.

All ends are played, each migration's by processes of their own, so that the gaps are the proxy's and not Python's here.
"""

from __future__ import annotations

import multiprocessing
import random
import socket
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks.carriers import OURS, Way, carrying, free_port
from benchmarks.played import TIMEOUT, connected, receive
from benchmarks.switchover import CAPTURE, HOST, MIDR, Switchover, cut_at_state, grown
from formats.channels.return_path import shut
from tests.streams import (
    RAM_EOS,
    RAM_ID,
    buffer_section,
    footer,
    ram_page,
    recorded,
    section_end,
    section_part,
    short_head,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Event

_PAGE = 4096
_HEAD = short_head().removesuffix(section_end(RAM_ID, RAM_EOS))
_PAGES = b"".join(ram_page(index % 16 * _PAGE, payload=b"\x5a" * _PAGE) for index in range(256))
_BUFFER = 1 << 20
_FLOWS = 0.3
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Others:
    """What switches over beside the migration that flows.

    Attributes:
        name: as in the table.
        switchover: each one's stream; None where there is nothing.
        count: how many at once.
    """

    name: str
    switchover: Switchover | None
    count: int = 0


def others() -> Sequence[Others]:
    """Return what is measured."""
    many = grown(64, vmdesc=True)
    return (
        Others("nothing", None),
        Others("one of 64 vCPUs", many, 1),
        Others("20 of 64 vCPUs", many, 20),
        Others("one of 64 vCPUs, without vmdesc", grown(64, vmdesc=False), 1),
        Others("20 of 64 vCPUs, without vmdesc", grown(64, vmdesc=False), 20),
        Others("one with 60 MiB of device state", large(60 << 20, vmdesc=True), 1),
        Others("one with 60 MiB of device state, without vmdesc", large(60 << 20, vmdesc=False), 1),
    )


def large(size: int, *, vmdesc: bool) -> Switchover:
    """Return a stream with a device of so many bytes, as a graphics card's memory."""
    parts = recorded(CAPTURE)
    content = (random.Random(size).randbytes(_BUFFER) * (size // _BUFFER))[:size]
    number = max(section.section_id for section in parts.sections) + 1
    parts = parts.inserted(parts.index("cpu"), buffer_section(number, "large", content))
    return cut_at_state(parts, 1, vmdesc=vmdesc)


async def measured(beside: Others, rounds: int) -> list[float]:
    """Return the seconds that a flowing migration stood still at most, once for each round."""
    with tempfile.TemporaryDirectory(prefix="vmstate-bench-") as name, socket.create_server(("127.0.0.1", 0)) as back:
        target = back.getsockname()[1]
        way = Way(free_port(), target, Path(name), HOST, MIDR)
        async with carrying(OURS, way):
            return [await trio.to_thread.run_sync(_one, beside, way, back) for _ in range(rounds)]


def _one(beside: Others, way: Way, back: socket.socket) -> float:
    begins, ends = _fork.Event(), _fork.Event()
    here, there = _fork.Pipe(duplex=False)
    source, destination = _connection(way, back, _HEAD)
    flow = [
        _fork.Process(target=_pour, args=(source,)),
        _fork.Process(target=_watch, args=(destination, begins, ends, there)),
    ]
    with source, destination, _switching(beside, way, back) as switch:
        for one in flow:
            one.start()
        time.sleep(_FLOWS)
        begins.set()
        switch()
        time.sleep(_FLOWS)
        ends.set()
        gap = float(here.recv())
    for one in flow:
        one.terminate()
        one.join()
    return gap


@contextmanager
def _switching(beside: Others, way: Way, back: socket.socket) -> Iterator[Callable[[], None]]:
    """Connect the others, send all but their device state, and yield what sends that, of all at once."""
    now = _fork.Event()
    workers = []
    for _ in range(beside.count):
        assert beside.switchover is not None
        pair = _connection(way, back, beside.switchover.before)
        workers.append(_fork.Process(target=_switch, args=(*pair, beside.switchover, now)))
        workers[-1].start()
        for sock in pair:
            sock.close()

    def switch() -> None:
        now.set()
        for worker in workers:
            worker.join(TIMEOUT)
            if worker.exitcode:
                raise RuntimeError("a migration did not switch over")

    yield switch


def _connection(way: Way, back: socket.socket, before: bytes) -> tuple[socket.socket, socket.socket]:
    """Begin a migration; return its source's socket and its destination's."""
    source = connected(way.port)
    source.sendall(before)
    destination, _ = back.accept()
    destination.settimeout(TIMEOUT)
    receive(destination, len(before))
    return source, destination


def _switch(source: socket.socket, destination: socket.socket, switchover: Switchover, now: Event) -> None:
    now.wait(TIMEOUT)
    source.sendall(switchover.state)
    receive(destination, len(switchover.state))
    destination.sendall(shut(0))
    destination.shutdown(socket.SHUT_WR)
    receive(source, len(shut(0)))


def _pour(source: socket.socket) -> None:
    source.sendall(section_part(RAM_ID, b"").removesuffix(footer(RAM_ID)))
    while True:
        source.sendall(_PAGES)


def _watch(destination: socket.socket, begins: Event, ends: Event, there: Connection) -> None:
    buffer = bytearray(_BUFFER)
    began, worst, last = 0.0, 0.0, time.perf_counter()
    while not ends.is_set():
        if not destination.recv_into(buffer):
            raise RuntimeError("the migration that flows has ended")
        now = time.perf_counter()
        if began:
            worst = max(worst, now - max(last, began))
        elif begins.is_set():
            began = now
        last = now
    there.send(worst)
