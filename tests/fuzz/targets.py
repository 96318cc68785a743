"""What is fuzzed, and what must be true whatever comes."""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from formats.channels.multifd import channel_guest
from formats.channels.return_path import ReturnPathListener
from formats.errors import FormatError
from formats.files import libvirt_save, qcow2
from formats.stream.file_header import read_file_header
from proxy.captures.offline import rewrite
from proxy.captures.qcow2.image import Image
from proxy.captures.qcow2.vm_state import VmState
from proxy.errors import ConfigError, ProxyError
from proxy.hosts.profile_file import load_profile
from proxy.hosts.profile_text import write_profile
from proxy.policy.policy import Mode
from proxy.policy.policy_file import load_policy
from proxy.rewriter.rewriter import Rewriter
from tests.fuzz.mutations import ANY, STREAM
from tests.fuzz.plain_reader import PlainError, read_plainly
from tests.proxy.helpers import NEWER_SWAPPED, R0, judge, profile, short
from tests.streams import Reading, mapped_head, pieces_of, small, tiny

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

POLICY = (Path(__file__).parents[2] / "proxy" / "policy" / "policy_example.toml").read_bytes()


@dataclass(frozen=True)
class Target:
    """Something that takes bytes.

    Attributes:
        name: What it is called.
        seeds: Makes inputs that are sound.
        run: Takes an input; it raises AssertionError, or anything that is not documented, where something is wrong.
        ways: How inputs are changed.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    run: Callable[[bytes, int], None]
    ways: Sequence[Callable[[bytearray, random.Random], None]] = field(default=ANY)


@cache
def streams() -> tuple[bytes, ...]:
    return (tiny().stream(), tiny().stream(), tiny().bare(), small().stream(), small_mapped())


@cache
def small_mapped() -> bytes:
    return mapped_head() + small().devices + b"\0"


def parse(data: bytes, size: int) -> None:
    """The parser gives every byte back, once, or a documented error; what it cuts, the plain reader cuts, too."""
    for mapped, trailing in ((False, False), (True, True)):
        reading = Reading(1 << 20, take_mapped_ram=mapped, take_trailing=trailing)
        try:
            reading.feed_all(pieces_of(data, size))
        except FormatError:
            assert data.startswith(reading.raw)
            continue
        assert reading.raw == data
        if not trailing and reading.states and reading.states[-1].vmdesc is not None and len(reading.states) == 1:
            check_plainly(data, reading)


def check_plainly(data: bytes, reading: Reading) -> None:
    try:
        plain = read_plainly(data)
    except (PlainError, KeyError, TypeError, ValueError):
        return  # it knows less, and says so
    (state,) = reading.states
    found = [(one.name, one.instance_id, state.offset + one.start, state.offset + one.end) for one in state.sections]
    assert found == plain.sections


def observe(data: bytes, size: int) -> None:
    """Who only watches changes nothing, whatever comes."""
    rewriter = Rewriter(judge(mode=Mode.OBSERVE, swap={}), live=True, device_state_limit=1 << 20)
    out = bytearray()
    for piece in (*pieces_of(data, size), b""):
        for one in rewriter.feed(piece) if piece else rewriter.end():
            out += one
    assert out == data


def repair(data: bytes, _size: int) -> None:
    """Only what is reported is changed: values of registers, where the plain reader has them, too."""
    rewriter = Rewriter(judge(R0, swap={register: "fuzz" for register in swapped()}), live=False)
    sink = io.BytesIO()
    try:
        rewrite(io.BytesIO(data), sink, rewriter, lambda _: None)
    except (FormatError, ProxyError):
        assert rewriter.report.outcome.value in ("failed", "refused")
        return
    out = sink.getvalue()
    if any(one.action.value == "drop" for one in rewriter.report.changes):
        assert len(out) < len(data)
        return
    assert len(out) == len(data)
    different = {at for at in range(len(data)) if data[at] != out[at]}
    assert len(different) <= 8 * len(rewriter.report.changes)
    with suppress(PlainError, KeyError, TypeError, ValueError):
        plain = read_plainly(data)
        places = {plain.registers[one.vcpu][one.register] for one in rewriter.report.changes}
        assert different <= {place + byte for place in places for byte in range(8)}


@cache
def swapped() -> tuple[int, ...]:
    from formats.arm.sysreg import MIDR_EL1, parse_register

    return (MIDR_EL1, *(parse_register(name) for name in NEWER_SWAPPED))


def _file(load: Callable[[Path], object]) -> Callable[[bytes, int], None]:
    def run(data: bytes, _size: int) -> None:
        with tempfile.NamedTemporaryFile(suffix=".toml") as file:
            file.write(data)
            file.flush()
            with suppress(ConfigError):
                load(Path(file.name))

    return run


def image(data: bytes, size: int) -> None:
    """An image is read, or refused by name; nothing is read for ever."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with suppress(FormatError, ConfigError):
            found = Image.read(file.fileno())
            for one in found.snapshots[:4]:
                state = VmState(found, one)
                buffer = bytearray(min(size, 1 << 16))
                for _ in range(4):
                    with suppress(OSError):
                        state.readinto(buffer)
                with suppress(ProxyError):
                    list(state.runs(0, min(state.size, 5000)))


@cache
def images() -> tuple[bytes, ...]:
    """Return an image of 512-byte clusters with a snapshot, and the same in version 2."""
    from tests.formats.files.test_qcow2 import entry, header

    out = []
    for version in (2, 3):
        size = 512
        made = bytearray(size * 12)
        start = bytearray(header(version=version, bits=9, snapshots=1))
        start[24:32] = (size * 64).to_bytes(8, "big")
        for at, value in ((40, 2), (48, 4), (64, 6)):
            start[at : at + 8] = (value * size).to_bytes(8, "big")
        made[: len(start)] = start
        from formats.files.qcow2 import Snapshot

        made[6 * size : 6 * size + 80] = entry(Snapshot("1", "one", 5, 6, 600, size * 64, 7 * size, 2)).ljust(80, b"\0")
        made[7 * size + 8 : 7 * size + 16] = (8 * size).to_bytes(8, "big")
        for index, cluster in enumerate((9, 10)):
            made[8 * size + 8 * index : 8 * size + 8 * index + 8] = (cluster * size).to_bytes(8, "big")
        made[4 * size : 4 * size + 8] = (5 * size).to_bytes(8, "big")
        made[5 * size : 5 * size + 24] = b"\0\1" * 12
        made[9 * size :] = (tiny().stream()[: 2 * size]).ljust(3 * size, b"\0")
        out.append(bytes(made))
    return tuple(out)


def save_header(data: bytes, _size: int) -> None:
    with suppress(FormatError):
        libvirt_save.parse_header(data)
    with suppress(FormatError):
        qcow2.parse_header(data)


def first_bytes(data: bytes, _size: int) -> None:
    with suppress(FormatError):
        read_file_header(memoryview(data), ended=True)
    channel_guest(data.ljust(25, b"\0"))


def return_path(data: bytes, size: int) -> None:
    listener = ReturnPathListener()
    for piece in pieces_of(data, size):
        listener.listen(memoryview(piece))
    assert listener.ending


TARGETS: tuple[Target, ...] = (
    Target("parser", streams, parse, STREAM),
    Target("observe", streams, observe, STREAM),
    Target("repair", lambda: (short("kvm-trixie-a57r0"), tiny().stream(), small().stream()), repair, STREAM),
    Target("profile", lambda: (write_profile(profile("kvm-trixie-a57r3")).encode(),), _file(load_profile)),
    Target("policy", lambda: (POLICY,), _file(load_policy)),
    Target("image", images, image),
    Target("save header", lambda: (b"LibvirtQemudSave" + (2).to_bytes(4, "little") + bytes(72),), save_header),
    Target(
        "first bytes", lambda: (b"\x11\x22\x33\x44\0\0\0\1" + bytes(17), b"QEVM\0\0\0\3", b"\x16\x03\1"), first_bytes
    ),
    Target("return path", lambda: (b"\0\2\0\4\0\0\0\1\0\1\0\4\0\0\0\0",), return_path),
)
