"""Where device sections begin and end: two locators that agree, and a guest that forges what they look for."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import FormatError, MalformedStreamError, UnlocatableSectionError
from formats.vmstate.footers import locate_by_footers
from formats.vmstate.locators import DeviceSection, locate_by_vmdesc
from formats.vmstate.vcpus import open_vcpus
from formats.vmstate.vmdesc import parse_vmdesc
from tests.streams import (
    EOF,
    FILE_HEADER,
    MIDR,
    NAMES,
    RAM_EOS,
    SMP2,
    Parts,
    Reading,
    Section,
    be32,
    buffer_section,
    capture,
    changed,
    collect,
    command,
    configuration,
    cpreg_ids,
    cpu_section,
    device_state,
    footer,
    forged_cpu,
    hostile_body,
    pieces_of,
    ram_setup,
    recorded,
    registers_of,
    section_end,
    section_header,
    section_start,
    short,
    short_head,
    small,
    small_sections,
    vmdesc_record,
)

Devices = list[dict[str, Any]]


def bounds(sections: list[DeviceSection] | tuple[DeviceSection, ...]) -> list[tuple[object, ...]]:
    return [
        (
            found.section_id,
            found.name,
            found.instance_id,
            found.version_id,
            found.start,
            found.body,
            found.body_end,
            found.end,
        )
        for found in sections
    ]


def true_bounds(parts: Parts) -> list[tuple[object, ...]]:
    """Return the bounds that the sections have by construction."""
    found: list[tuple[object, ...]] = []
    start = 0
    for section in parts.sections:
        body = start + len(section.header)
        end = body + len(section.body)
        found.append((section.section_id, section.name, section.instance, section.version, start, body, end, end + 5))
        start = end + 5
    return found


def by_vmdesc(parts: Parts, vmdesc: dict[str, Any] | None = None) -> list[DeviceSection]:
    held = bytearray(parts.devices + EOF)
    text = json.dumps(parts.vmdesc() if vmdesc is None else vmdesc).encode()
    return locate_by_vmdesc(held, len(held) - 1, parse_vmdesc(text, 0), (), 0)


def by_footers(parts: Parts) -> list[DeviceSection] | None:
    held = bytearray(parts.devices + EOF)
    return locate_by_footers(held, len(held) - 1, 0)


def refused(stream: bytes, size: int = 1 << 20) -> FormatError:
    """Return the error that a stream ends in; none of its device state may have been released."""
    reading = Reading()
    with pytest.raises(FormatError) as caught:
        reading.feed_all(pieces_of(stream, size))
    assert not reading.states
    assert stream.startswith(reading.raw)
    return caught.value


# --- both agree


@pytest.mark.parametrize("name", NAMES)
def test_the_two_locators_agree(name: str) -> None:
    parts = recorded(name)
    assert bounds(by_vmdesc(parts)) == true_bounds(parts)
    assert bounds(by_footers(parts) or ()) == true_bounds(parts)
    for stream in (parts.stream(), parts.bare(), capture(name)):
        assert bounds(device_state(stream).sections) == true_bounds(parts)


def test_what_a_section_is() -> None:
    parts = recorded(SMP2)
    state = device_state(capture(SMP2))
    assert state.offset == len(parts.head)
    assert bytes(state.held) == capture(SMP2)[len(parts.head) :]
    for found, section in zip(state.sections, parts.sections, strict=True):
        assert bytes(state.held[found.body : found.body_end]) == section.body
        assert found.layout is not None
        assert found.layout.size == len(section.body)
        assert found.label == f"'{section.name}' instance {section.instance}"
    assert all(found.layout is None for found in device_state(parts.bare()).sections)


# --- a vmdesc that lies


def rename(devices: Devices) -> None:
    devices[0]["name"] = "timeR"


def resize(devices: Devices) -> None:
    devices[2]["fields"] = [{"name": "buffer", "type": "buffer", "size": 148}]


def lengthen(devices: Devices) -> None:
    devices[2]["fields"] = [{"name": "buffer", "type": "buffer", "size": 150}]


def shift(devices: Devices) -> None:
    """One section gets what the next loses."""
    devices[2]["fields"][0]["size"] += 5
    devices[3]["fields"][0]["size"] -= 5


def swallow(devices: Devices) -> None:
    """One section gets all of the next."""
    devices[2]["fields"][0]["size"] += len(small_sections()[3].raw)
    del devices[3]


def exceed(devices: Devices) -> None:
    devices[3]["fields"][0]["size"] = 2**32 - 1


def shorten_cpu(devices: Devices) -> None:
    devices[1]["fields"][1]["size"] -= 8


LIES: dict[str, Callable[[Devices], object]] = {
    "a name": rename,
    "an instance": lambda devices: devices[1].update(instance_id=1),
    "a version": lambda devices: devices[2].update(version=3),
    "a cpu version": lambda devices: devices[1].update(version=23),
    "a shorter section": resize,
    "a longer section": lengthen,
    "two lengths": shift,
    "a section swallowed": swallow,
    "more than there is": exceed,
    "a shorter cpu": shorten_cpu,
    "a subsection's name": lambda devices: devices[1]["subsections"][0].update(vmsd_name="cpu/irq-line-statE"),
    "a subsection's version": lambda devices: devices[1]["subsections"][0].update(version=2),
    "no subsection": lambda devices: devices[1].pop("subsections"),
    "first missing": lambda devices: devices.pop(0),
    "cpu missing": lambda devices: devices.pop(1),
    "last missing": lambda devices: devices.pop(),
    "all missing": lambda devices: devices.clear(),
    "extra at the end": lambda devices: devices.append({"name": "extra", "instance_id": 0}),
    "extra at the start": lambda devices: devices.insert(0, {"name": "extra", "instance_id": 0}),
    "doubled": lambda devices: devices.insert(2, devices[2]),
    "another order": lambda devices: devices.reverse(),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_vmdesc_that_lies(lie: Callable[[Devices], object]) -> None:
    parts = small()
    error = refused(parts.stream(changed(parts.vmdesc(), lie)))
    assert type(error) is UnlocatableSectionError
    assert len(parts.head) <= error.offset < len(parts.bare())


@pytest.mark.parametrize("name", NAMES)
def test_every_length_of_a_recorded_vmdesc_counts(name: str) -> None:
    parts = short(name)
    for index, section in enumerate(parts.sections):
        fields = section.description["fields"]
        for by in (-1, 1):
            vmdesc = parts.vmdesc()
            member = vmdesc["devices"][index]["fields"][len(fields) // 2]
            vmdesc["devices"][index]["fields"].append({"name": "more", "type": "uint8", "size": 1})
            if by < 0:
                member["array_len" if "array_len" in member else "size"] -= 1
                vmdesc["devices"][index]["fields"].pop()
            with pytest.raises(FormatError):
                device_state(parts.stream(vmdesc))


@pytest.mark.parametrize("length", [255, 256, 300])
def test_a_subsection_name_of_any_length_is_an_error_of_the_format(length: int) -> None:
    parts = small()
    vmdesc = changed(
        parts.vmdesc(),
        lambda devices: devices[2].update(subsections=[{"vmsd_name": "x" * length, "version": 1, "fields": []}]),
    )
    refused(parts.stream(vmdesc))


def test_a_stream_that_lies_is_caught_by_its_vmdesc() -> None:
    """Each byte of each header, subsection header and footer matters but for those that nothing can tell."""
    parts = small()
    stream = parts.stream()
    base = len(parts.head)
    for (_, _, _, _, start, body, end, _), section in zip(true_bounds(parts), parts.sections, strict=True):
        assert isinstance(start, int)
        assert isinstance(body, int)
        assert isinstance(end, int)
        name_at = start + 5
        told = [*range(name_at, body), *range(end, end + 5)]
        if section.name == "cpu":
            subsection = section.body.index(b"\x05\x12cpu/")
            told += range(body + subsection, body + subsection + 24)
        for at in told:
            broken = bytearray(stream)
            broken[base + at] ^= 0x01
            with pytest.raises(FormatError):
                device_state(bytes(broken))


def test_a_vmdesc_that_cuts_the_cpu_at_a_later_footer() -> None:
    """The vmdesc gives the `cpu` more bytes than its layout has, and they do end at a footer."""
    parts = small()
    index = parts.index("cpu")
    cpu = parts.sections[index]
    longer = replace(cpu, body=cpu.body + footer(cpu.section_id) + bytes(9))
    vmdesc = parts.vmdesc()
    vmdesc["devices"][index]["subsections"][0]["fields"].append({"name": "more", "type": "buffer", "size": 14})
    with pytest.raises(UnlocatableSectionError, match="layout of version 22"):
        by_vmdesc(parts.replaced(index, longer), vmdesc)


# --- a hostile guest


def hostile(after: bool, name: str = "0000:00:03.0/e1000", parts: Parts | None = None) -> tuple[Parts, Parts]:
    """Return a stream, and the same with a device whose buffer holds a forged `cpu` section."""
    true = small() if parts is None else parts
    index = true.index("cpu") + (1 if after else -1)
    body = hostile_body(60, name)
    return true, true.inserted(index, buffer_section(60, name, body))


@pytest.mark.parametrize("capture_name", [None, *NAMES])
@pytest.mark.parametrize("after", [False, True], ids=["before the cpu", "after the cpu"])
def test_a_forged_cpu_is_passed_over_with_a_vmdesc(after: bool, capture_name: str | None) -> None:
    true, forged = hostile(after, parts=None if capture_name is None else recorded(capture_name))
    state = device_state(forged.stream())
    assert bounds(state.sections) == true_bounds(forged)
    vcpus = open_vcpus(state)
    expected = [section for section in true.sections if section.name == "cpu"]
    assert [registers.vcpu for registers in vcpus] == [section.instance for section in expected]
    assert [dict(registers.items()) for registers in vcpus] == [registers_of(section) for section in expected]


@pytest.mark.parametrize("capture_name", [None, *NAMES])
@pytest.mark.parametrize("after", [False, True], ids=["before the cpu", "after the cpu"])
def test_a_forged_cpu_is_refused_without_a_vmdesc(after: bool, capture_name: str | None) -> None:
    _, forged = hostile(after, parts=None if capture_name is None else recorded(capture_name))
    error = refused(forged.bare())
    assert type(error) is UnlocatableSectionError
    assert "more than one way" in error.message
    assert "suppress-vmdesc=off" in error.advice


@pytest.mark.parametrize("swaps", [False, True], ids=["takes it away", "puts another in its place"])
def test_a_cut_that_swallows_the_true_cpu(swaps: bool) -> None:
    """The forged way runs past the true `cpu`: it opens a section that a footer in a later buffer closes."""
    forgery = forged_cpu(77) if swaps else b""
    one = buffer_section(50, "dev/one", bytes(30) + footer(50) + forgery + section_header(4, 99, "dev/fake"))
    two = buffer_section(51, "dev/two", b"\x11" * 20 + footer(99) + section_header(4, 51, "dev/two") + bytes(9))
    parts = small()
    cpu = parts.index("cpu")
    forged = parts.inserted(cpu + 1, two).inserted(cpu, one)
    assert bounds(device_state(forged.stream()).sections) == true_bounds(forged)
    if swaps:
        assert type(refused(forged.bare())) is UnlocatableSectionError
    else:
        assert bounds(device_state(forged.bare()).sections) == true_bounds(forged)


def test_a_forgery_that_leads_nowhere_is_passed_over() -> None:
    """A forged section that does not open the buffer's own again leaves just one way."""
    body = bytes(30) + footer(50) + forged_cpu(77) + bytes(30)
    parts = small().inserted(1, buffer_section(50, "dev", body))
    for stream in (parts.stream(), parts.bare()):
        state = device_state(stream)
        assert bounds(state.sections) == true_bounds(parts)
        assert [registers[cpreg_ids(1)[0]] for registers in open_vcpus(state)] == [MIDR]


def test_the_cpu_schema_decides_where_footers_do_not() -> None:
    """What looks like a footer and a header in a register's value cannot cut the `cpu` section."""
    forged = footer(4) + section_header(4, 4, "x", 0, 1)
    ids = cpreg_ids(20)
    values = [MIDR, *range(1, 20)]
    section = cpu_section(4, ids, values)
    at = section.body.index((19).to_bytes(8, "big")) - 48
    body = section.body[:at] + forged.ljust(48, b"\0") + section.body[at + 48 :]
    parts = small()
    parts = parts.replaced(parts.index("cpu"), replace(section, body=body))
    assert bounds(by_footers(parts) or ()) == true_bounds(parts)
    assert bounds(by_vmdesc(parts)) == true_bounds(parts)


# --- a forged end


def with_forged_end() -> tuple[Parts, bytes]:
    """Return a stream whose device buffer has a whole forged end, vmdesc included; and the bytes up to there.

    The forged vmdesc describes all that went before it exactly; with the true one it could not be told apart.
    """
    parts = small()
    index = parts.index("pl011")
    before = parts.sections[:index]
    opening = bytes(64)
    forged = Parts(parts.head, (*before, buffer_section(60, "dev", opening)))
    fake = opening + footer(60) + EOF + vmdesc_record(forged.vmdesc())
    whole = parts.inserted(index, buffer_section(60, "dev", fake + bytes(50)))
    assert whole.stream().startswith(forged.stream())
    return whole, forged.stream()


def test_a_forged_end_within_a_chunk_is_ignored() -> None:
    whole, forged = with_forged_end()
    stream = whole.stream()
    for pieces in (
        [stream],
        [stream[: len(forged) - 1], stream[len(forged) - 1 :]],
        [stream[: len(forged) + 1], stream[len(forged) + 1 :]],
    ):
        reading = collect(pieces)
        assert reading.raw == stream
        assert bounds(reading.states[0].sections) == true_bounds(whole)


def test_a_forged_end_at_the_end_of_a_chunk_breaks_the_migration() -> None:
    whole, forged = with_forged_end()
    stream = whole.stream()
    reading = Reading()
    reading.feed(stream[: len(forged)])
    with pytest.raises(MalformedStreamError):
        reading.feed(stream[len(forged) :])
    assert len(reading.raw) <= len(forged), "some of the true rest was passed on"
    assert not reading.parser.complete


def test_a_forged_end_without_a_vmdesc() -> None:
    """A forged footer and end of file, at the end of a chunk, while the vmdesc is said to be overdue."""
    parts = small()
    body = bytes(30) + footer(60) + EOF + bytes(30)
    parts = parts.inserted(parts.index("pl011"), buffer_section(60, "dev", body))
    stream = parts.bare()
    end = stream.index(footer(60) + EOF) + 6
    reading = Reading()
    reading.feed(stream[:end])
    reading.parser.vmdesc_overdue()
    reading.drain()
    with pytest.raises(MalformedStreamError):
        reading.feed(stream[end:])
    assert len(reading.raw) <= end


def test_a_guest_cannot_hide_the_true_vmdesc() -> None:
    """The last body's last bytes overlap the true footer, end of file and vmdesc to look like others."""
    target = 0x7B20
    parts = small()
    hidden: list[tuple[int, bytes]] = []

    def found_whole(stream: bytes, tailed: Parts) -> bool:
        try:
            return bounds(device_state(stream).sections) == true_bounds(tailed)
        except FormatError:
            return False

    last = parts.sections[-1]
    for section_id in range(8):
        for tail in (b"\x7e", b"\x7e\x7e", b"\x7e\0", b"\x7e\0\0", b"\x7e\0\0\0", b"\x7e\0\0\0\0", b"\x7e\0\0\0\0\0"):
            tailed = parts.replaced(
                len(parts.sections) - 1, replace(last, section_id=section_id, body=last.body[: -len(tail)] + tail)
            )
            text = json.dumps(tailed.vmdesc()).encode()
            stream = tailed.bare() + vmdesc_record(text + b" " * (target - len(text)))
            hidden += [(section_id, tail)] * (not found_whole(stream, tailed))
    assert not hidden


# --- footers that overlap, and many of them


@pytest.mark.parametrize("section_id", [0x7E, 0x7E7E7E7E, 0x7E000000, 0])
def test_footers_that_overlap(section_id: int) -> None:
    bodies = [
        b"\x7e" * 40,
        b"\x7e\0\0\0" * 10,
        footer(section_id)[:4] * 3,
        footer(section_id) * 5,
        b"\x7e" * 4 + b"\x04",
    ]
    for body in bodies:
        parts = small().replaced(2, buffer_section(section_id, "pl011", body))
        assert bounds(by_footers(parts) or ()) == true_bounds(parts)
        assert bounds(by_vmdesc(parts)) == true_bounds(parts)


@pytest.mark.parametrize("body_bytes", range(5))
def test_a_footer_cannot_stand_in_its_own_header(body_bytes: int) -> None:
    """A header whose end is spelled like its footer, with a forged header right after: no section without a body."""
    spelled = footer(1)
    instance_and_version = (b"\0" * 8 + spelled[: 5 - body_bytes])[-8:]
    body = spelled[5 - body_bytes :] + section_header(4, 1, "x") + bytes(9)
    instance, version = int.from_bytes(instance_and_version[:4], "big"), int.from_bytes(instance_and_version[4:], "big")
    parts = Parts(b"", (Section(1, "n", instance, version, body, {}), *small_sections()))
    assert (parts.sections[0].header + body)[-len(body) - 5 + body_bytes :].startswith(spelled)
    assert bounds(by_footers(parts) or ()) == true_bounds(parts)


def test_empty_bodies() -> None:
    empty = [buffer_section(number, f"empty{number}", b"") for number in range(20, 30)]
    parts = Parts(short_head(), (*small_sections(), *empty))
    assert bounds(by_footers(parts) or ()) == true_bounds(parts)
    assert bounds(by_vmdesc(parts)) == true_bounds(parts)


def test_one_section_twice_in_a_row() -> None:
    """The same id twice: the first might reach to the second's footer, so it is not certain."""
    section = buffer_section(9, "twice", bytes(30))
    parts = Parts(short_head(), (section, section))
    assert bounds(device_state(parts.stream()).sections) == true_bounds(parts)
    assert type(refused(parts.bare())) is UnlocatableSectionError


def test_the_longest_header() -> None:
    sections = [buffer_section(number, chr(number) * 255, bytes(number)) for number in range(80, 84)]
    parts = Parts(short_head(), (*sections, *small_sections()))
    assert bounds(by_footers(parts) or ()) == true_bounds(parts)
    assert bounds(by_vmdesc(parts)) == true_bounds(parts)


def dense(pattern: bytes, size: int) -> Parts:
    parts = small()
    body = (pattern * (size // len(pattern) + 1))[:size]
    return parts.inserted(parts.index("pl011"), buffer_section(60, "dev", body))


PATTERNS = {
    "7e": b"\x7e",
    "footers": footer(60),
    "footers before ends": footer(60) + EOF,
    "footers before starts": footer(60) + section_header(1, 1, "ram"),
    "footers before broken headers": footer(60) + b"\x04",
    "footers before long broken headers": footer(60) + b"\x04\0\0\0\0\xff" + b"a" * 240 + b"\xff",
    "sections": section_header(4, 60, "a") + footer(60),
    "sections of cpus": section_header(4, 60, "cpu", 0, 22) + bytes(4) + footer(60),
    "vmdescs": footer(60) + EOF + b"\x06\0\0\0\x10{",
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_many_forgeries_are_weighed_in_time(pattern: bytes) -> None:
    parts = dense(pattern, 1 << 20 if len(pattern) < 7 else 1 << 18)
    started = time.process_time()
    state = device_state(parts.stream())
    assert bounds(state.sections) == true_bounds(parts)
    try:
        assert bounds(device_state(parts.bare()).sections) == true_bounds(parts)
    except UnlocatableSectionError:
        assert pattern.count(b"\x04"), "one way was called more"
    assert time.process_time() - started < 5


def test_forged_register_lists_are_weighed_in_time() -> None:
    """Headers of `cpu` sections whose register counts are as large as fits; each might be read whole."""
    header = footer(60) + section_header(4, 60, "cpu", 0, 22)
    size = 1 << 19
    count = be32(size // 64)
    # The count of the section at k * period stands at k * period + 22 + 568, so in each at (22 + 568) % period.
    period = 40
    unit = bytearray(header.ljust(period, b"\0"))
    unit[(len(header) + 568) % period : (len(header) + 568) % period + 4] = count
    assert bytes(unit[: len(header)]) == header, "the count would stand in the header"
    parts = dense(bytes(unit), size)
    started = time.process_time()
    with pytest.raises(UnlocatableSectionError):
        device_state(parts.bare())
    assert time.process_time() - started < 1


def test_many_true_sections() -> None:
    """A thousand devices, and no recursion."""
    sections = [buffer_section(100 + number, f"dev{number}", bytes([number & 0xFF]) * 50) for number in range(1500)]
    parts = Parts(short_head(), (*small_sections(), *sections))
    started = time.process_time()
    assert bounds(device_state(parts.bare()).sections) == true_bounds(parts)
    assert bounds(device_state(parts.stream()).sections) == true_bounds(parts)
    assert time.process_time() - started < 5


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_footers_are_right_or_refuse(data: st.DataObject) -> None:
    """Whatever guests put in bodies: what is located without a vmdesc is the truth."""
    ids = st.sampled_from([1, 2, 3, 0x7E])
    names = st.sampled_from(["a", "b", "\x7e", "dev/cpu"])
    cpu = cpu_section(3, cpreg_ids(1), [MIDR])
    piece = st.one_of(
        st.binary(max_size=12),
        ids.map(footer),
        st.builds(section_header, st.just(4), ids, names),
        st.just(b"\x7e"),
        st.just(EOF),
        st.builds(lambda number, name: footer(number) + section_header(4, number, name), ids, names),
        ids.map(forged_cpu),
    )
    body = st.lists(piece, max_size=6).map(b"".join)
    buffers = st.lists(st.builds(buffer_section, ids, names, body), max_size=4)
    parts = Parts(b"", (*data.draw(buffers), cpu, *data.draw(buffers)))
    assert bounds(by_vmdesc(parts)) == true_bounds(parts)
    try:
        located = by_footers(parts)
    except UnlocatableSectionError:
        return
    assert located is not None, "the true way was not found"
    assert bounds(located) == true_bounds(parts)


def test_a_state_that_is_not_all_there_is_not_located() -> None:
    parts = small()
    ends = {end for *_, end in true_bounds(parts)}
    for end in set(range(0, len(parts.devices), 7)) - ends:
        assert locate_by_footers(bytearray(parts.devices[:end] + EOF), end, 0) is None


# --- sections before RAM


def early_stream(early: list[Section], vmdesc: dict[str, Any] | None = None, *, bare: bool = False) -> bytes:
    """Return a stream with device sections before RAM, as virtio-mem sends."""
    parts = small()
    ram = section_start(1, "ram", ram_setup({"a": 0x1000}) + RAM_EOS) + section_end(1, RAM_EOS)
    head = FILE_HEADER + configuration() + command(1) + b"".join(section.raw for section in early) + ram
    parts = replace(parts, head=head)
    if bare:
        return parts.bare()
    return parts.stream(parts.vmdesc(early) if vmdesc is None else vmdesc)


EARLY = [
    buffer_section(70, "0000:00:04.0/virtio-mem-early", b"\x01\x02\x03\x04" * 20),
    buffer_section(71, "0000:00:05.0/virtio-mem-early", b"\x05" * 17, version=3),
]


@pytest.mark.parametrize("size", [1, 3, 17, 1 << 20])
@pytest.mark.parametrize("count", [1, 2])
def test_early_sections(count: int, size: int) -> None:
    early = EARLY[:count]
    stream = early_stream(early)
    reading = collect(pieces_of(stream, size))
    assert reading.raw == stream
    first, last = reading.states
    assert (first.early, first.vmdesc, last.early) == (True, None, False)
    assert bounds(first.sections) == true_bounds(Parts(b"", tuple(early)))
    assert bounds(last.sections) == true_bounds(small())
    assert last.vmdesc is not None
    assert len(last.vmdesc.devices) == count + len(small_sections())


def test_early_sections_between_iterable_ones() -> None:
    """One iterable section has started, another has not: the device sections go between the two."""
    bitmap = section_start(8, "dirty-bitmap", b"\x01", version=1)
    stream = early_stream(EARLY).replace(command(1), command(1) + bitmap, 1)
    ended = stream.replace(section_end(1, RAM_EOS), section_end(1, RAM_EOS) + section_end(8, b"\x01"))
    reading = collect(pieces_of(ended, 9))
    assert [state.early for state in reading.states] == [True, False]
    assert reading.raw == ended


def test_early_sections_without_a_vmdesc_are_refused() -> None:
    stream = early_stream(EARLY, bare=True)
    reading = Reading()
    with pytest.raises(UnlocatableSectionError, match="virtio-mem-early") as caught:
        reading.feed_all([stream])
    assert "suppress-vmdesc=off" in caught.value.advice
    assert [state.early for state in reading.states] == [True]


EARLY_LIES: dict[str, Callable[[Devices], object]] = {
    "a length": lambda devices: devices[0]["fields"][0].update(size=79),
    "a name": lambda devices: devices[1].update(name="0000:00:06.0/virtio-mem-early"),
    "an instance": lambda devices: devices[1].update(instance_id=1),
    "a version": lambda devices: devices[1].update(version=4),
    "a subsection": lambda devices: devices[1].update(
        fields=[{"name": "b", "type": "buffer", "size": 0}],
        subsections=[{"vmsd_name": "sub", "version": 0, "fields": [{"name": "b", "type": "buffer", "size": 8}]}],
    ),
    "one missing": lambda devices: devices.pop(0),
    "both missing": lambda devices: devices.__delitem__(slice(0, 2)),
    "all missing": lambda devices: devices.clear(),
    "only one": lambda devices: devices.__delitem__(slice(1, None)),
    "one more": lambda devices: devices.insert(2, devices[1]),
    "another order": lambda devices: devices.insert(0, devices.pop(1)),
}


@pytest.mark.parametrize("lie", EARLY_LIES.values(), ids=EARLY_LIES)
def test_early_sections_that_the_vmdesc_denies(lie: Callable[[Devices], object]) -> None:
    parts = small()
    vmdesc = changed(parts.vmdesc(EARLY), lie)
    ram_starts = early_stream(EARLY).index(section_header(1, 1, "ram", 0, 4)) + 20
    stream = early_stream(EARLY, vmdesc)
    with pytest.raises(UnlocatableSectionError):
        collect([stream[:ram_starts], stream[ram_starts:]])


@pytest.mark.parametrize("size", [1, 50, 300])
def test_a_forged_early_end(size: int) -> None:
    """A guest ends its early section with a RAM section of its own: wherever that leads, no CPU state is released."""
    fake_ram = section_start(5, "ram", ram_setup({"a": 0x1000}) + RAM_EOS) + section_end(5, RAM_EOS)
    reopened = section_header(4, 70, "0000:00:04.0/virtio-mem-early")
    for body in (
        bytes(9) + footer(70) + fake_ram + bytes(9),
        bytes(9) + footer(70) + fake_ram + reopened + bytes(9),
        bytes(9) + footer(70) + section_header(1, 5, "ram", 0, 4),
    ):
        stream = early_stream([buffer_section(70, "0000:00:04.0/virtio-mem-early", body)])
        reading = Reading()
        with pytest.raises(FormatError):
            reading.feed_all(pieces_of(stream, size))
        assert not [state for state in reading.states if open_vcpus(state)]
        assert not reading.parser.complete


@pytest.mark.parametrize("size", [1, 300, 2000])
def test_a_hostile_early_section_with_a_cpu(size: int) -> None:
    """A forged `cpu` in an early section that is cut at a forged end: the vmdesc has the last word."""
    fake_ram = section_start(5, "ram", RAM_EOS) + section_end(5, RAM_EOS)
    reopened = section_header(4, 70, "virtio-mem")
    body = bytes(9) + footer(70) + forged_cpu(77) + fake_ram + reopened + bytes(9)
    stream = early_stream([buffer_section(70, "virtio-mem", body)])
    reading = Reading()
    with pytest.raises(FormatError):
        reading.feed_all(pieces_of(stream, size))
    assert all(state.early for state in reading.states)


def test_ram_content_does_not_make_early_sections_ambiguous() -> None:
    """RAM that a guest filled with forged ends comes in the same chunk as the early sections, or in the next."""
    page = (footer(70) + section_header(1, 1, "ram", 0, 4)) * 200
    early = EARLY[:1]
    head, ram = early_stream(early).split(section_header(1, 1, "ram", 0, 4), 1)
    pages = b"".join((0x08 | 0x20 | number << 12).to_bytes(8, "big") + page[:4096] for number in range(3))
    ram = ram.replace(RAM_EOS + footer(1) + b"\x03", pages + RAM_EOS + footer(1) + b"\x03", 1)
    stream = head + section_header(1, 1, "ram", 0, 4) + ram
    for pieces in (pieces_of(stream, 37), (stream[:-100], stream[-100:])):
        assert collect(pieces).raw == stream


def test_ram_in_the_same_chunk_is_not_held_against_the_limit() -> None:
    stream = early_stream(EARLY)
    limit = len(small().stream()) - len(small().head) + 2000
    padded = stream.replace(
        ram_setup({"a": 0x1000}) + RAM_EOS,
        ram_setup({"a": 0x1000}) + ((0x28).to_bytes(8, "big") + bytes(4096)) * 10 + RAM_EOS,
        1,
    )
    for pieces in (pieces_of(padded, 100), (padded[:-100], padded[-100:])):
        assert collect(pieces, device_state_limit=limit).raw == padded
