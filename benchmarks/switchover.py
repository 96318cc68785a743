"""What the proxy adds to the switchover: from the last byte of device state in, to the last byte out.

The stream is a recorded one of KVM, with as many of its vCPUs as are wanted. The source's part is played, and the
destination's is a socket that is read, so that nothing but the carrier is measured. All vCPUs are changed on the way.
"""

from __future__ import annotations

import socket
import tempfile
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks.carriers import ROOT, Carrier, Way, carrying, free_port
from formats.channels.return_path import shut
from tests.proxy.helpers import live
from tests.streams import device_state, recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

CAPTURE = "kvm-trixie-a57r0"
HOST = ROOT / "captures/hosts/trixie-a57.toml"
MIDR = "0x411fd070"
_BUFFER = 4 << 20
_TIMEOUT = 30.0
_SETTLE = 0.002


@dataclass(frozen=True, slots=True)
class Switchover:
    """A stream, cut where its device state begins.

    Attributes:
        vcpus: how many.
        vmdesc: whether a vmdesc follows the device state.
        before: all before the device state.
        state: the device state to the stream's end.
    """

    vcpus: int
    vmdesc: bool
    before: bytes
    state: bytes


def grown(vcpus: int, *, vmdesc: bool, name: str = CAPTURE) -> Switchover:
    """Make a stream with so many vCPUs of a recorded one, which has a single vCPU."""
    parts = recorded(name)
    index = parts.index("cpu")
    first = parts.sections[index]
    highest = max(section.section_id for section in parts.sections)
    for number in range(1, vcpus):
        description = deepcopy(first.description) | {"instance_id": number}
        copy = replace(first, section_id=highest + number, instance=number, description=description)
        parts = parts.inserted(index + number, copy)
    stream = live(parts.stream() if vmdesc else parts.bare())
    start = device_state(stream).offset
    return Switchover(vcpus, vmdesc, stream[:start], stream[start:])


async def measured(switchover: Switchover, carrier: Carrier, rounds: int) -> Sequence[float]:
    """Return the seconds between the last byte in and the last byte out, once for each round."""
    with tempfile.TemporaryDirectory(prefix="vmstate-bench-") as name, socket.create_server(("127.0.0.1", 0)) as back:
        back.settimeout(_TIMEOUT)
        target = back.getsockname()[1]
        way = Way(target if carrier.command is None else free_port(), target, Path(name), HOST, MIDR)
        async with carrying(carrier, way):
            return [await trio.to_thread.run_sync(_one, switchover, way, back) for _ in range(rounds)]


def _one(switchover: Switchover, way: Way, back: socket.socket) -> float:
    with socket.create_connection(("127.0.0.1", way.port), _TIMEOUT) as source:
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        source.sendall(switchover.before)
        destination, _ = back.accept()
        with destination:
            destination.settimeout(_TIMEOUT)
            _receive(destination, len(switchover.before))
            # A source has its vCPUs' state together a moment after the last of its RAM.
            time.sleep(_SETTLE)
            # What does not fit into the sockets' buffers is sent as the carrier takes it; the clock starts at the end.
            source.sendall(switchover.state)
            started = time.perf_counter()
            _receive(destination, len(switchover.state))
            seconds = time.perf_counter() - started
            destination.sendall(shut(0))
            destination.shutdown(socket.SHUT_WR)
            _receive(source, len(shut(0)))
            source.shutdown(socket.SHUT_WR)
            while destination.recv(_BUFFER):
                pass
    return seconds


def _receive(sock: socket.socket, length: int) -> None:
    buffer = bytearray(_BUFFER)
    while length:
        length -= sock.recv_into(buffer, min(length, _BUFFER)) or _gone()


def _gone() -> int:
    raise RuntimeError("the carrier closed the connection")
