"""What the tests of formats/ share: recorded streams, synthetic ones, and ways to cut, change and read them.

Nothing here uses the code under test but `collect` and its kin, which drive the parser.
"""

import json
import lzma
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from formats.frame.event import NEED_DATA
from formats.limits import DEFAULT_DEVICE_STATE_LIMIT
from formats.stream.events import (
    AnyEvent,
    Command,
    Configuration,
    FileHeader,
    IterableData,
    LateVmdesc,
    MappedPages,
    PostcopyData,
    SectionBegin,
    SectionFooter,
    TrailingBytes,
)
from formats.stream.parser import StreamParser
from formats.vmstate.device_state import DeviceState
from tests.captures import CAPTURES, read_manifest

NAMES = sorted(one.name for one in read_manifest() if one.saved_on_kvm)
WHOLE = sorted(one.name for one in read_manifest() if one.whole)
SMP2 = "kvm-trixie-a57r0-smp2"

CPREG_COUNT_AT = 568
"""Bytes of a `cpu` body before its register count."""


@cache
def capture(name: str) -> bytes:
    """Return a recorded stream."""
    return lzma.decompress((CAPTURES / f"{name}.xz").read_bytes())


# --- records


def be32(number: int) -> bytes:
    return struct.pack(">I", number)


def be64(number: int) -> bytes:
    return struct.pack(">Q", number)


def counted(name: str) -> bytes:
    return bytes([len(name)]) + name.encode("latin-1")


FILE_HEADER = b"QEVM" + be32(3)
EOF = b"\x00"


def configuration_subsection(name: str, body: bytes) -> bytes:
    return b"\x05" + counted(f"configuration/{name}") + be32(1) + body


def configuration(
    machine: str = "virt-9.9",
    *,
    page_bits: int | None = 12,
    capabilities: Sequence[str] | None = None,
    uuid: bytes | None = None,
) -> bytes:
    out = b"\x07" + be32(len(machine)) + machine.encode()
    if page_bits is not None:
        out += configuration_subsection("target-page-bits", be32(page_bits))
    if capabilities is not None:
        names = b"".join(counted(name) for name in capabilities)
        out += configuration_subsection("capabilities", be32(len(capabilities)) + names)
    if uuid is not None:
        out += configuration_subsection("uuid", uuid)
    return out


def command(number: int, payload: bytes = b"") -> bytes:
    return b"\x08" + struct.pack(">HH", number, len(payload)) + payload


def footer(section_id: int) -> bytes:
    return b"\x7e" + be32(section_id)


def section_header(kind: int, section_id: int, name: str, instance: int = 0, version: int = 1) -> bytes:
    return bytes([kind]) + be32(section_id) + counted(name) + be32(instance) + be32(version)


def section_start(section_id: int, name: str, body: bytes, version: int = 4) -> bytes:
    return section_header(1, section_id, name, 0, version) + body + footer(section_id)


def section_part(section_id: int, body: bytes) -> bytes:
    return b"\x02" + be32(section_id) + body + footer(section_id)


def section_end(section_id: int, body: bytes) -> bytes:
    return b"\x03" + be32(section_id) + body + footer(section_id)


RAM_EOS = be64(0x10)


def ram_setup(blocks: dict[str, int], *, addresses: Sequence[int] | None = None) -> bytes:
    out = be64(sum(blocks.values()) | 0x04)
    for index, (name, length) in enumerate(blocks.items()):
        out += counted(name) + be64(length)
        if addresses is not None:
            out += be64(addresses[index])
    return out


def mapped_ram_setup(
    blocks: dict[str, int], at: int, *, align: int = 4096, start: int = 0, addresses: Sequence[int] | None = None
) -> bytes:
    """Return the setup list of a mapped-ram stream, with its gaps.

    Args:
        blocks: RAM blocks and their lengths.
        at: Where the list is in the stream.
        align: What pages are aligned to in the file; QEMU takes 1 MiB.
        start: Where the stream is in the file.
        addresses: The blocks' addresses, as with x-ignore-shared.
    """
    out = be64(sum(blocks.values()) | 0x04)
    for index, (name, length) in enumerate(blocks.items()):
        out += counted(name) + be64(length) + (be64(addresses[index]) if addresses is not None else b"")
        bitmap_at = start + at + len(out) + 28
        bitmap = (b"\xff" * (length >> 15)).ljust(-(-length // 4096 // 64) * 8, b"\x01")
        pages_at = -(-(bitmap_at + len(bitmap)) // align) * align
        out += be32(1) + be64(4096) + be64(bitmap_at) + be64(pages_at)
        out += bitmap + bytes(pages_at - bitmap_at - len(bitmap))
        # What would be taken for records and sections, if anyone looked.
        out += (RAM_EOS + footer(RAM_ID) + forged_cpu(7)).ljust(length, b"\x10")[:length]
    return out


def mapped_head(*, start: int = 0, align: int = 4096) -> bytes:
    """Return the stream of a mapped-ram file, from its header to the end of RAM; its sections follow."""
    head = FILE_HEADER + configuration(capabilities=["mapped-ram"]) + section_header(1, RAM_ID, "ram", 0, 4)
    return (
        head
        + mapped_ram_setup(SHORT_BLOCKS, len(head), align=align, start=start)
        + RAM_EOS
        + footer(RAM_ID)
        + section_part(RAM_ID, RAM_EOS)
        + section_end(RAM_ID, RAM_EOS)
    )


def ram_page(offset: int, payload: bytes, block: str | None = None) -> bytes:
    """Return a full page; without `block`, it goes on in the block at hand."""
    return be64(offset | 0x08 | (0x20 if block is None else 0)) + (counted(block) if block else b"") + payload


def ram_zero(offset: int, block: str | None = None) -> bytes:
    return be64(offset | 0x02 | (0x20 if block is None else 0)) + (counted(block) if block else b"") + b"\0"


# --- device sections, and their description


def size_of(description: dict[str, Any]) -> int:
    """Return how many bytes a vmdesc's device, struct or subsection has, read off its JSON."""
    own: int = sum(member["size"] * member.get("array_len", 1) for member in description.get("fields", ()))
    subsections = description.get("subsections", ())
    return own + sum(6 + len(sub["vmsd_name"]) + size_of(sub) for sub in subsections)


@dataclass(frozen=True)
class Section:
    """A device section, and what the vmdesc says of it."""

    section_id: int
    name: str
    instance: int
    version: int
    body: bytes
    description: dict[str, Any] = field(repr=False)

    @property
    def header(self) -> bytes:
        return section_header(4, self.section_id, self.name, self.instance, self.version)

    @property
    def raw(self) -> bytes:
        return self.header + self.body + footer(self.section_id)


def buffer_section(section_id: int, name: str, body: bytes, version: int = 1, instance: int = 0) -> Section:
    """Return a device section that is one buffer, such as a packet buffer that the guest fills."""
    member = {"name": "buffer", "type": "buffer", "size": len(body)}
    description = {
        "name": name,
        "instance_id": instance,
        "vmsd_name": name,
        "version": version,
        "fields": [member],
    }
    return Section(section_id, name, instance, version, body, description)


@dataclass(frozen=True)
class Parts:
    """A stream taken apart: what goes before its device state, and the device sections."""

    head: bytes
    sections: tuple[Section, ...]

    def vmdesc(self, early: Sequence[Section] = ()) -> dict[str, Any]:
        """Return the vmdesc of the sections; change it and give it to `stream`."""
        devices = [deepcopy(section.description) for section in (*early, *self.sections)]
        return {"page_size": 4096, "devices": devices}

    @property
    def devices(self) -> bytes:
        return b"".join(section.raw for section in self.sections)

    def stream(self, vmdesc: dict[str, Any] | bytes | None = None) -> bytes:
        """Return the whole stream, with the right vmdesc or the one given."""
        return self.bare() + vmdesc_record(self.vmdesc() if vmdesc is None else vmdesc)

    def bare(self) -> bytes:
        """Return the stream as a source with suppress-vmdesc=on sends it."""
        return self.head + self.devices + EOF

    def index(self, name: str, instance: int = 0) -> int:
        (found,) = [
            index for index, section in enumerate(self.sections) if (section.name, section.instance) == (name, instance)
        ]
        return found

    def inserted(self, index: int, section: Section) -> "Parts":
        return replace(self, sections=(*self.sections[:index], section, *self.sections[index:]))

    def replaced(self, index: int, section: Section) -> "Parts":
        return replace(self, sections=(*self.sections[:index], section, *self.sections[index + 1 :]))


def vmdesc_record(vmdesc: dict[str, Any] | bytes) -> bytes:
    text = vmdesc if isinstance(vmdesc, bytes) else json.dumps(vmdesc).encode()
    return b"\x06" + be32(len(text)) + text


@cache
def take_apart(stream: bytes) -> Parts:
    """Take a stream with a vmdesc apart, by the vmdesc; every header and footer is asserted."""
    (at,) = [
        at
        for at in range(len(stream) - 5)
        if stream[at] == 6
        and stream[at + 5] == 0x7B
        and int.from_bytes(stream[at + 1 : at + 5], "big") == len(stream) - at - 5
    ]
    devices = json.loads(stream[at + 5 :])["devices"]
    total = sum(14 + len(device["name"]) + size_of(device) + 5 for device in devices)
    position = at - 1 - total
    head = stream[:position]
    sections = []
    for device in devices:
        section_id, version = (
            int.from_bytes(stream[position + 1 : position + 5], "big"),
            int.from_bytes(stream[position + 10 + len(device["name"]) : position + 14 + len(device["name"])], "big"),
        )
        body = position + 14 + len(device["name"])
        section = Section(
            section_id,
            device["name"],
            device["instance_id"],
            version,
            stream[body : body + size_of(device)],
            device,
        )
        assert stream.startswith(section.raw, position)
        sections.append(section)
        position += len(section.raw)
    assert stream[position : at + 1] == b"\x00\x06"
    return Parts(head, tuple(sections))


@cache
def recorded(name: str) -> Parts:
    """Return a recorded stream, taken apart."""
    return take_apart(capture(name))


@cache
def short(name: str) -> Parts:
    """Return a recorded stream, taken apart and with a short synthetic head in place of its RAM."""
    return replace(recorded(name), head=short_head())


# --- cpu sections


def register_id(number: int) -> int:
    """Return the `number`th of a row of plausible KVM register ids; 0 is MIDR_EL1."""
    return 0x603000000013C000 + number


def cpreg_ids(count: int) -> list[int]:
    return [register_id(number) for number in range(count)]


def cpu_body(ids: Sequence[int], values: Sequence[int], tail: bytes = b"") -> bytes:
    """Return the body of a version 22 `cpu` section; its plain fields count up, `tail` has the subsections."""
    before = bytes(index & 0xFF for index in range(CPREG_COUNT_AT))
    after = bytes(0x80 | index & 0x3F for index in range(64)) + b"\x01"
    arrays = struct.pack(f">I{len(ids)}Q{len(values)}Q", len(ids), *ids, *values)
    return before + arrays + after + tail


def irq_line_subsection() -> bytes:
    return b"\x05" + counted("cpu/irq-line-state") + be32(1) + be32(7)


def cpu_section(section_id: int, ids: Sequence[int], values: Sequence[int], *, instance: int = 0) -> Section:
    """Return a version 22 `cpu` section with a subsection, and with the description that QEMU gives."""
    count = len(ids)
    fields: list[dict[str, Any]] = [
        {"name": "env.regs", "type": "uint32", "size": 4, "array_len": 16},
        {"name": "rest", "type": "buffer", "size": CPREG_COUNT_AT - 64},
        {"name": "cpreg_vmstate_array_len", "type": "int32 le", "size": 4},
        {"name": "cpreg_vmstate_indexes", "type": "uint64", "size": 8, "array_len": count},
        {"name": "cpreg_vmstate_values", "type": "uint64", "size": 8, "array_len": count},
        {"name": "env.exclusive_addr", "type": "uint64", "size": 8},
        {"name": "rest", "type": "buffer", "size": 56},
        {"name": "power_state", "type": "powered_off", "size": 1},
    ]
    irq_line = {"name": "env.irq_line_state", "type": "uint32", "size": 4}
    description = {
        "name": "cpu",
        "instance_id": instance,
        "vmsd_name": "cpu",
        "version": 22,
        "fields": fields,
        "subsections": [{"vmsd_name": "cpu/irq-line-state", "version": 1, "fields": [irq_line]}],
    }
    return Section(section_id, "cpu", instance, 22, cpu_body(ids, values, irq_line_subsection()), description)


def registers_of(section: Section) -> dict[int, int]:
    """Return the registers of a `cpu` section."""
    (count,) = struct.unpack_from(">I", section.body, CPREG_COUNT_AT)
    numbers = struct.unpack_from(f">{2 * count}Q", section.body, CPREG_COUNT_AT + 4)
    return dict(zip(numbers[:count], numbers[count:], strict=True))


# --- whole synthetic streams


RAM_ID = 1
SHORT_BLOCKS = {"mach-virt.ram": 0x10000, "virt.flash0": 0x2000}


def short_head(*, configured: bytes | None = None, commands: bytes = command(1) + command(2, be32(1))) -> bytes:
    """Return the stream from its header to the end of RAM: two pages, and some zero pages."""
    pages = ram_page(0, bytes(range(256)) * 16, "mach-virt.ram") + ram_page(0x1000, b"\x7e" * 4096)
    zeroes = ram_zero(0, "virt.flash0") + ram_zero(0x1000) + ram_zero(0x2000, "mach-virt.ram")
    return (
        FILE_HEADER
        + (configuration() if configured is None else configured)
        + commands
        + section_start(RAM_ID, "ram", ram_setup(SHORT_BLOCKS) + RAM_EOS)
        + section_part(RAM_ID, pages + zeroes + RAM_EOS)
        + section_end(RAM_ID, RAM_EOS)
    )


MIDR = 0x411FD070


def small_sections() -> tuple[Section, ...]:
    ids = cpreg_ids(20)
    return (
        buffer_section(3, "timer", b"\x00\x01\x02\x03" * 6, version=2),
        cpu_section(4, ids, [MIDR, *range(1, 20)]),
        buffer_section(5, "pl011", bytes(149), version=2),
        buffer_section(6, "globalstate", b"paused" + bytes(98)),
    )


@cache
def small() -> Parts:
    """Return a synthetic stream of some 6 KiB that has a bit of everything."""
    return Parts(short_head(), small_sections())


def tiny_head() -> bytes:
    """Return a head without full pages, for tests that go over every byte."""
    return (
        FILE_HEADER
        + configuration(capabilities=["x-ignore-shared"], uuid=bytes(range(16)))
        + command(1)
        + section_start(RAM_ID, "ram", ram_setup({"a": 0x3000, "b": 0x1000}, addresses=[0x40000000, 0]) + RAM_EOS)
        + section_part(RAM_ID, ram_zero(0x1000, "a") + ram_zero(0x2000) + RAM_EOS)
        + section_end(RAM_ID, ram_zero(0, "b") + RAM_EOS)
    )


@cache
def tiny() -> Parts:
    """Return a synthetic stream of about 3 KiB."""
    return Parts(tiny_head(), small_sections())


# --- forgeries


def forged_cpu(section_id: int, midr: int = 0x410FD0FF) -> bytes:
    """Return a whole `cpu` section, footer included, that is a perfect one but for being inside another's body."""
    ids = cpreg_ids(40)
    return cpu_section(section_id, ids, [midr, *range(1, 40)]).raw


def hostile_body(section_id: int, name: str, *, cpu_id: int = 77) -> bytes:
    """Return a device body that closes its section, has a forged `cpu` section, and opens its section again."""
    reopened = section_header(4, section_id, name, 0, 1)
    return b"\x55" * 40 + footer(section_id) + forged_cpu(cpu_id) + reopened + b"\xaa" * 24


# --- reading


@dataclass(frozen=True)
class Seen:
    """An event, with its bytes copied; adjacent pieces of an iterable section's body are one."""

    kind: type[AnyEvent]
    offset: int
    raw: bytes = field(repr=False)
    details: tuple[object, ...]


def details_of(event: AnyEvent) -> tuple[object, ...]:
    match event:
        case FileHeader():
            return (event.version,)
        case Configuration():
            return (event.machine, event.page_bits, event.capabilities, event.uuid)
        case Command():
            return (event.command, event.payload)
        case SectionBegin():
            return (event.type, event.section_id, event.name, event.instance_id, event.version_id)
        case SectionFooter():
            return (event.section_id,)
        case DeviceState():
            return (event.sections, event.vmdesc, event.early, event.packaged)
        case MappedPages() | TrailingBytes():
            return (event.length,)
        case IterableData() | LateVmdesc() | PostcopyData():
            return ()


class Reading:
    """A parser and what came out of it.

    Attributes:
        parser: The parser.
        events: The events, their bytes good only until the next `feed`, but for device states.
        seen: The events as copied when they came, the pieces of a body joined.
    """

    def __init__(
        self,
        device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT,
        *,
        take_mapped_ram: bool = False,
        take_trailing: bool = False,
    ) -> None:
        self.parser = StreamParser(
            device_state_limit=device_state_limit, take_mapped_ram=take_mapped_ram, take_trailing=take_trailing
        )
        self.events: list[AnyEvent] = []
        self.seen: list[Seen] = []

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self.parser.feed(data)
        self.drain()

    def feed_all(self, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
        """Feed the pieces and the end."""
        for piece in pieces:
            self.feed(piece)
        self.feed(b"")

    def drain(self) -> None:
        while (event := self.parser.next_event()) is not NEED_DATA:
            raw = bytes(event.raw)
            assert raw or isinstance(event, IterableData), "an event without bytes"
            if isinstance(event, IterableData) and self.seen and self.seen[-1].kind is IterableData:
                joined = self.seen[-1]
                assert joined.offset + len(joined.raw) == event.offset
                self.seen[-1] = replace(joined, raw=joined.raw + raw)
            else:
                self.seen.append(Seen(type(event), event.offset, raw, details_of(event)))
            self.events.append(event)

    @property
    def raw(self) -> bytes:
        """All that was passed on."""
        return b"".join(event.raw for event in self.seen)

    @property
    def states(self) -> list[DeviceState]:
        return [event for event in self.events if isinstance(event, DeviceState)]


def collect(
    pieces: Iterable[bytes | bytearray | memoryview], device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT
) -> Reading:
    """Feed the pieces and the end, and return what came of them; errors are raised."""
    reading = Reading(device_state_limit)
    reading.feed_all(pieces)
    return reading


def device_state(stream: bytes) -> DeviceState:
    """Return the one device state of a stream."""
    (state,) = collect([stream]).states
    return state


def cut(stream: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """Yield the stream in pieces that end at the cuts."""
    start = 0
    for end in sorted({*cuts, len(stream)}):
        if start < end <= len(stream):
            yield stream[start:end]
            start = end


def pieces_of(stream: bytes, size: int) -> Iterator[bytes]:
    return (stream[at : at + size] for at in range(0, len(stream), size))


def changed(vmdesc: dict[str, Any], change: Callable[[list[dict[str, Any]]], object]) -> dict[str, Any]:
    """Return a vmdesc with its list of devices changed."""
    other = deepcopy(vmdesc)
    change(other["devices"])
    return other
