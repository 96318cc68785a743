"""What the proxy adds to the switchover: from the last byte of device state in, to the last byte out.

The stream is a recorded one of KVM, with as many of its vCPUs as are wanted. The source's part is played, and the
destination's is a socket that is read, so that nothing but the carrier is measured. All vCPUs are changed on the way.
"""

from __future__ import annotations

import socket
import tempfile
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks.carriers import ROOT, Carrier, Way, carrying, free_port
from benchmarks.played import TIMEOUT, switch_over
from tests.proxy.helpers import live
from tests.streams import device_state, recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.streams import Parts

CAPTURE = "kvm-trixie-a57r0"
HOST = ROOT / "captures/hosts/trixie-a57.toml"
MIDR = "0x411fd070"


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
    return cut_at_state(parts, vcpus, vmdesc=vmdesc)


def cut_at_state(parts: Parts, vcpus: int, *, vmdesc: bool) -> Switchover:
    """Put a stream together, of so many vCPUs, and cut it where its device state begins."""
    stream = live(parts.stream() if vmdesc else parts.bare())
    start = device_state(stream).offset
    return Switchover(vcpus, vmdesc, stream[:start], stream[start:])


async def measured(switchover: Switchover, carrier: Carrier, rounds: int) -> Sequence[float]:
    """Return the seconds between the last byte in and the last byte out, once for each round."""
    with tempfile.TemporaryDirectory(prefix="vmstate-bench-") as name, socket.create_server(("127.0.0.1", 0)) as back:
        back.settimeout(TIMEOUT)
        target = back.getsockname()[1]
        way = Way(target if carrier.command is None else free_port(), target, Path(name), HOST, MIDR)
        async with carrying(carrier, way):
            one = partial(switch_over, switchover.before, switchover.state, len(switchover.state), way.port, back)
            return [await trio.to_thread.run_sync(one) for _ in range(rounds)]
