"""Ways to carry one connection whose bytes have to be read, each as a small program: what the proxy chose among.

A process sends, one receives, and one stands between that does nothing else than to carry the bytes; TCP by the usual
congestion control, over the loopback. `splice`, which reads nothing, is what no other way can reach.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import multiprocessing
import os
import socket
import threading
import time
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.congestion import USUAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

SIZE = 1 << 30
_PIECE = 1 << 20
_PIPE = 1 << 20
_SO_ZEROCOPY, _MSG_ZEROCOPY = 60, 0x4000000
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a way cost, for each GiB.

    Attributes:
        total: seconds from the first byte to the last.
        cpu: seconds of processor time of the process between.
    """

    total: float
    cpu: float


def measured(rounds: int) -> dict[str, Cost]:
    """Return the medians of every way."""
    found: dict[str, list[Cost]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name, carry in WAYS.items():
            cost = _one(carry)
            if number:  # the first round warms up
                found[name].append(cost)
    return {
        name: Cost(median(one.total for one in costs), median(one.cpu for one in costs))
        for name, costs in found.items()
    }


def _one(carry: Callable[[socket.socket, socket.socket], None]) -> Cost:
    here, there = _fork.Pipe(duplex=False)
    with socket.create_server(("127.0.0.1", 0)) as front, socket.create_server(("127.0.0.1", 0)) as back:
        for server in front, back:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, USUAL.encode())
        ports = front.getsockname()[1], back.getsockname()[1]
        workers = [
            _fork.Process(target=_receive, args=(back,)),
            _fork.Process(target=_between, args=(carry, front, ports[1], there)),
            _fork.Process(target=_send, args=(ports[0],)),
        ]
        for worker in workers:
            worker.start()
        cost = here.recv()
        for worker in workers:
            worker.join()
    assert isinstance(cost, Cost)
    return cost


def _send(port: int) -> None:
    data = os.urandom(_PIECE)
    with _connected(port) as sock:
        for _ in range(SIZE // _PIECE):
            sock.sendall(data)


def _receive(server: socket.socket) -> None:
    buffer = bytearray(_PIECE)
    sock, _ = server.accept()
    while sock.recv_into(buffer):
        pass


def _between(
    carry: Callable[[socket.socket, socket.socket], None], front: socket.socket, port: int, there: Connection
) -> None:
    source, _ = front.accept()
    with source, _connected(port) as destination:
        source.recv(1, socket.MSG_PEEK)
        began, before = time.perf_counter(), os.times()
        carry(source, destination)
        after = os.times()
        cpu = after.user - before.user + after.system - before.system
        gibibytes = SIZE / (1 << 30)
        there.send(Cost((time.perf_counter() - began) / gibibytes, cpu / gibibytes))


def _connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, USUAL.encode())
    return sock


# --- the ways


def _copy(size: int, source: socket.socket, destination: socket.socket) -> None:
    _copied(source, destination, memoryview(bytearray(size)))


def _copied(source: socket.socket, destination: socket.socket, buffer: memoryview) -> None:
    while length := source.recv_into(buffer):
        destination.sendall(buffer[:length])


def _copy_huge(source: socket.socket, destination: socket.socket) -> None:
    area = mmap.mmap(-1, 4 << 20)
    area.madvise(mmap.MADV_HUGEPAGE)
    _copied(source, destination, memoryview(area)[:_PIECE])


def _copy_low_water(source: socket.socket, destination: socket.socket) -> None:
    source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 << 19)
    _copy(_PIECE, source, destination)


def _copy_by_two(source: socket.socket, destination: socket.socket) -> None:
    """Receive in one thread and send in another; two buffers go to and fro."""
    filled: SimpleQueue[tuple[memoryview, int]] = SimpleQueue()
    free: SimpleQueue[memoryview] = SimpleQueue()
    for _ in range(2):
        free.put(memoryview(bytearray(_PIECE)))

    def send() -> None:
        while (piece := filled.get())[1]:
            destination.sendall(piece[0][: piece[1]])
            free.put(piece[0])

    sender = threading.Thread(target=send)
    sender.start()
    length = 1
    while length:
        buffer = free.get()
        length = source.recv_into(buffer)
        filled.put((buffer, length))
    sender.join()


def _copy_zerocopy(source: socket.socket, destination: socket.socket) -> None:
    """Send without a copy, as far as the kernel does; its notices are thrown away, as a measurement may."""
    destination.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    buffer = memoryview(bytearray(_PIECE))
    while length := source.recv_into(buffer):
        sent = 0
        while sent < length:
            try:
                sent += destination.send(buffer[sent:length], _MSG_ZEROCOPY)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
            for _ in _notices(destination):
                pass


def _notices(sock: socket.socket) -> Iterator[object]:
    while True:
        try:
            yield sock.recvmsg(0, 256, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return


def _splice(source: socket.socket, destination: socket.socket) -> None:
    outlet, inlet = _pipe()
    while length := os.splice(source.fileno(), inlet, _PIPE):
        _let_out(outlet, destination, length)


def _look(size: int, source: socket.socket, destination: socket.socket) -> None:
    outlet, inlet = _pipe()
    buffer = memoryview(bytearray(size))
    while length := source.recv_into(buffer, 0, socket.MSG_PEEK):
        while length:
            moved = os.splice(source.fileno(), inlet, length)
            _let_out(outlet, destination, moved)
            length -= moved


def _tee(source: socket.socket, destination: socket.socket) -> None:
    """Double what is in the pipe, and read one of the two."""
    libc = ctypes.CDLL(None, use_errno=True)
    (outlet, inlet), (copy, copies) = _pipe(), _pipe()
    buffer = memoryview(bytearray(_PIPE))
    while length := os.splice(source.fileno(), inlet, _PIPE):
        while length:
            moved = libc.tee(outlet, copies, length, 0)
            _let_out(outlet, destination, moved)
            length -= moved
            while moved:
                moved -= os.readv(copy, [buffer[:moved]])


def _pipe() -> tuple[int, int]:
    outlet, inlet = os.pipe()
    fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, _PIPE)
    return outlet, inlet


def _let_out(outlet: int, destination: socket.socket, length: int) -> None:
    while length:
        length -= os.splice(outlet, destination.fileno(), length)


PAGE = """\
Each is a small program that carries 1 GiB from one process to another, and nothing else. A thread for each direction
needs a second processor, which the QEMUs do not leave. MSG_ZEROCOPY copies all the same on the loopback, and says so. A
BPF stream parser would keep full pages in the kernel unread; no kept-up Python library loads one without a
compiler, and it takes CAP_BPF, which the service has not."""

CHOSEN = "look (MSG_PEEK) at 1 MiB, then splice"

WAYS: dict[str, Callable[[socket.socket, socket.socket], None]] = {
    "copy, 1 MiB": partial(_copy, 1 << 20),
    "copy, 256 KiB": partial(_copy, 256 << 10),
    "copy, 1 MiB in a huge page": _copy_huge,
    "copy, 1 MiB, SO_RCVLOWAT 512 KiB": _copy_low_water,
    "copy, 1 MiB, a thread for each direction": _copy_by_two,
    "copy, 1 MiB, MSG_ZEROCOPY": _copy_zerocopy,
    "splice and tee, and read the copy": _tee,
    "look (MSG_PEEK) at 256 KiB, then splice": partial(_look, 256 << 10),
    CHOSEN: partial(_look, 1 << 20),
    "splice, nothing read": _splice,
}
