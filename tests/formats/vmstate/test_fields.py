"""Sections decoded field by field: nothing is left out, nothing is counted twice."""

from __future__ import annotations

import pytest

from formats.stream.parser import StreamParser
from formats.vmstate.device_state import DeviceState
from formats.vmstate.fields import DecodedField, decode_section
from tests.proxy.helpers import NAMES, capture, without_vmdesc


def decoded(stream: bytes) -> list[tuple[str, int, list[DecodedField]]]:
    parser = StreamParser()
    parser.feed(stream)
    parser.feed(b"")
    found = []
    while not parser.complete:
        event = parser.next_event()
        if isinstance(event, DeviceState):
            for section in event.sections:
                fields = list(decode_section(event.held, section))
                assert b"".join(as_bytes(event, section.start, one) for one in fields) == bytes(
                    event.held[section.start : section.end]
                )
                found.append((section.name, section.end - section.start, fields))
    return found


def as_bytes(state: DeviceState, start: int, one: DecodedField) -> bytes:
    return bytes(state.held[start + one.offset : start + one.offset + one.length])


@pytest.mark.parametrize("name", NAMES)
def test_the_fields_fill_every_section(name: str) -> None:
    sections = decoded(capture(name))
    assert sections
    for section, length, fields in sections:
        position = 0
        for one in fields:
            assert one.offset == position, (section, one.path)
            position += one.length
        assert position == length, section


def test_values() -> None:
    by_name = {name: fields for name, _, fields in decoded(capture("kvm-trixie-n1"))}
    [ids] = [one for one in by_name["cpu"] if one.path == ("cpreg_vmstate_indexes",)]
    assert isinstance(ids.value, list)
    assert len(ids.value) == 258
    assert ids.value[0] == 0x6020000000110000
    [ticks] = [one for one in by_name["timer"] if one.path == ("cpu_ticks_offset",)]
    assert (ticks.type, ticks.length) == ("int64", 8)
    gic = [one.path for one in by_name["arm_gicv3"]]
    assert ("cpu", "gicr_waker") in gic
    assert ("arm_gicv3/gicd_no_migration_shift_bug",) in gic


def test_without_a_vmdesc_only_a_cpu_is_decoded() -> None:
    described, by_schema = (
        {name: {one.path[-1]: one.value for one in fields} for name, _, fields in decoded(stream)}
        for stream in (capture("kvm-trixie-n1"), without_vmdesc(capture("kvm-trixie-n1")))
    )
    for name in ("cpreg_vmstate_array_len", "cpreg_vmstate_indexes", "cpreg_vmstate_values"):
        assert by_schema["cpu"][name] == described["cpu"][name]
    assert by_schema["timer"].keys() == {"header", "body", "footer"}


def test_every_vcpu_is_decoded() -> None:
    assert [name for name, _, _ in decoded(capture("kvm-trixie-a57r0-smp2"))].count("cpu") == 2
