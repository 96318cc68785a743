"""Registers taken out: what is left is copied, the counts agree, and the JSON keeps every other character."""

import re
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.arm.register_list import RegisterList
from formats.vmstate.removal import without_registers
from formats.vmstate.vcpus import open_vcpus
from tests.streams import (
    CPREG_COUNT_AT,
    SMP2,
    Parts,
    Section,
    be32,
    buffer_section,
    capture,
    collect,
    cpu_section,
    device_state,
    pieces_of,
    recorded,
    register_id,
    registers_of,
    short_head,
    small,
    take_apart,
    vmdesc_record,
)

N1 = "kvm-trixie-n1"
ARRAY_LEN = re.compile(r'("name": "cpreg_vmstate_(?:indexes|values)", [^}]*?"array_len": )(\d+)')


@cache
def stream_of(name: str) -> bytes:
    """Return a recorded stream with a short head in place of its RAM, and its own vmdesc, byte for byte."""
    return short_head() + capture(name)[len(recorded(name).head) :]


def ids_of(name: str, vcpu: int = 0) -> list[int]:
    parts = recorded(name)
    return list(registers_of(parts.sections[parts.index("cpu", vcpu)]))


def without(stream: bytes, removed: Mapping[int, Collection[int]]) -> bytes:
    """Return the stream without some registers, by vCPU; only those vCPUs are named to the code under test."""
    state = device_state(stream)
    pairs = [(registers, removed[registers.vcpu]) for registers in open_vcpus(state) if registers.vcpu in removed]
    counts = {registers.vcpu: len(set(registers.ids) - set(ids)) for registers, ids in pairs}
    return stream[: state.offset] + without_registers(state, pairs, counts)


def shortened(section: Section, removed: Collection[int]) -> bytes:
    """Return the body of a `cpu` section without some registers, cut by hand."""
    (count,) = struct.unpack_from(">I", section.body, CPREG_COUNT_AT)
    ids_at, values_at, after = (CPREG_COUNT_AT + 4 + 8 * count * part for part in range(3))
    kept = [index for index, id_ in enumerate(registers_of(section)) if id_ not in removed]
    ids = b"".join(section.body[ids_at + 8 * index : ids_at + 8 * index + 8] for index in kept)
    values = b"".join(section.body[values_at + 8 * index : values_at + 8 * index + 8] for index in kept)
    return section.body[:CPREG_COUNT_AT] + be32(len(kept)) + ids + values + section.body[after:]


def json_of(stream: bytes) -> str:
    """Return the text of the vmdesc at a stream's end; its length is asserted."""
    end = len(take_apart(stream).bare())
    assert stream[end] == 0x06
    assert int.from_bytes(stream[end + 1 : end + 5], "big") == len(stream) - end - 5
    return stream[end + 5 :].decode()


def is_register_array(field: dict[str, Any]) -> bool:
    return field["name"] in ("cpreg_vmstate_indexes", "cpreg_vmstate_values")


def check(stream: bytes, removed: Mapping[int, Collection[int]]) -> None:
    """Compare the outcome with the stream piece by piece, and read it as a destination would."""
    out = without(stream, removed)
    before, after = take_apart(stream), take_apart(out)
    assert after.head == before.head
    assert len(after.sections) == len(before.sections)
    for old, new in zip(before.sections, after.sections, strict=True):
        assert new.header == old.header
        cpu = old.name == "cpu" and old.instance in removed
        assert new.body == (shortened(old, removed[old.instance]) if cpu else old.body)
        if cpu:
            left = {id_: value for id_, value in registers_of(old).items() if id_ not in removed[old.instance]}
            assert registers_of(new) == left
            found = [field["array_len"] for field in new.description["fields"] if is_register_array(field)]
            assert found == [len(left), len(left)]
    # All but the digits is the same text; and every digit that was not to change.
    assert ARRAY_LEN.sub(r"\1", json_of(out)) == ARRAY_LEN.sub(r"\1", json_of(stream))
    counts = [str(len(registers_of(section))) for section in after.sections if section.name == "cpu"]
    assert [match[2] for match in ARRAY_LEN.finditer(json_of(out))] == [count for count in counts for _ in range(2)]

    reading = collect(pieces_of(out, 4097))
    assert reading.raw == out
    (state,) = reading.states
    assert state.vmdesc is not None
    assert [len(registers) for registers in open_vcpus(state)] == [int(count) for count in counts]


CHOICES: dict[str, Callable[[list[int]], Collection[int]]] = {
    "none": lambda _: [],
    "one": lambda ids: ids[100:101],
    "first": lambda ids: ids[:1],
    "last": lambda ids: ids[-1:],
    "every other": lambda ids: ids[::2],
    "to three digits less": lambda ids: ids[9:],
    "to two digits": lambda ids: ids[99:],
    "all but one": lambda ids: ids[:-1],
    "all": lambda ids: ids,
    "a set, with ids that are not there": lambda ids: {*ids[3:20], 0, (1 << 64) - 1},
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", [N1, SMP2])
def test_registers_leave_a_recorded_stream(name: str, choice: str) -> None:
    removed = CHOICES[choice](ids_of(name))
    vcpus = range(2) if name == SMP2 else range(1)
    check(stream_of(name), dict.fromkeys(vcpus, removed))


def test_nothing_removed_changes_nothing() -> None:
    assert without(stream_of(SMP2), {0: [], 1: ()}) == stream_of(SMP2)
    assert without(stream_of(SMP2), {}) == stream_of(SMP2)


@pytest.mark.parametrize("removed", [{0: 17}, {1: 17}, {0: 3, 1: 200}, {0: 200, 1: 3}, {0: 0, 1: 1}], ids=str)
def test_vcpus_lose_different_registers(removed: dict[int, int]) -> None:
    ids = ids_of(SMP2)
    check(stream_of(SMP2), {vcpu: ids[7 * vcpu : 7 * vcpu + count] for vcpu, count in removed.items()})


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_registers_of_any_vcpus(data: st.DataObject) -> None:
    ids = ids_of(SMP2)
    subset = st.sets(st.sampled_from(ids), max_size=len(ids) - 17)
    check(stream_of(SMP2), data.draw(st.dictionaries(st.sampled_from([0, 1]), subset)))


def test_removing_again_is_removing_at_once() -> None:
    ids = ids_of(SMP2)
    at_once = without(stream_of(SMP2), {0: ids[:40], 1: ids[5:30]})
    stepwise = without(stream_of(SMP2), {0: ids[:20]})
    stepwise = without(stepwise, {0: ids[20:40], 1: ids[5:9]})
    assert without(stepwise, {1: ids[9:30]}) == at_once


def test_what_was_patched_goes_on_patched() -> None:
    stream = stream_of(SMP2)
    state = device_state(stream)
    first, second = open_vcpus(state)
    first[first.ids[0]] = 0x0102030405060708
    second[second.ids[-1]] = 0xFFFFFFFFFFFFFFFF
    removed = list(first.ids[1:40])
    counts = dict.fromkeys((0, 1), len(first) - len(removed))
    out = take_apart(stream[: state.offset] + without_registers(state, [(first, removed), (second, removed)], counts))
    left = [registers_of(section) for section in out.sections if section.name == "cpu"]
    assert left[0][first.ids[0]] == 0x0102030405060708
    assert left[1][first.ids[-1]] == 0xFFFFFFFFFFFFFFFF
    assert [vcpu.keys() for vcpu in left] == [set(first.ids) - set(removed)] * 2


@pytest.mark.parametrize("vcpus", [(0,), (1,), (0, 1)], ids=str)
def test_without_a_vmdesc_the_sections_are_shorter_and_that_is_all(vcpus: tuple[int, ...]) -> None:
    stream = stream_of(SMP2)
    removed = dict.fromkeys(vcpus, ids_of(SMP2)[3:20])
    bare = take_apart(stream).bare()
    assert without(bare, removed) == take_apart(without(stream, removed)).bare()
    # And what is left is located by its footers.
    assert len(collect([without(bare, removed)]).states) == 1


def test_sections_before_ram_count_in_the_vmdesc() -> None:
    early = buffer_section(90, "virtio-mem-early", bytes(range(200)), version=1)
    parts = small()
    ram = parts.head.index(b"\x01\0\0\0\x01\x03ram")
    stream = parts.head[:ram] + early.raw + parts.head[ram:] + parts.devices + b"\x00"
    stream += vmdesc_record(parts.vmdesc([early]))
    first, state = collect([stream]).states
    assert first.early
    (registers,) = open_vcpus(state)
    assert without_registers(first, [], {}) == first.held
    out = stream[: state.offset] + without_registers(state, [(registers, registers.ids[2:4])], {0: len(registers) - 2})
    _, left = collect([out]).states
    assert [len(registers) for registers in open_vcpus(left)] == [18]


def many_vcpus(instances: list[int], count: int) -> Parts:
    ids = [register_id(number) for number in range(count)]
    sections = tuple(cpu_section(10 + n, ids, ids, instance=instance) for n, instance in enumerate(instances))
    return replace(small(), sections=(small().sections[0], *sections, *small().sections[2:]))


@pytest.mark.parametrize("instances", [[0], [3], [0, 7, 2], [1, 258, 256, 0]], ids=str)
def test_instance_ids_tell_vcpus_apart(instances: list[int]) -> None:
    """Not their place; nor do numbers in the vmdesc that look like a count matter."""
    stream = many_vcpus(instances, 256).stream()
    removed = {instance: [register_id(n) for n in range(20, 40 + place)] for place, instance in enumerate(instances)}
    check(stream, removed)
    check(stream, {instances[-1]: removed[instances[-1]]})


def test_the_counts_of_vcpus_that_lost_nothing_stay() -> None:
    stream = many_vcpus([0, 1, 2], 30).stream()
    counts = [match[2] for match in ARRAY_LEN.finditer(json_of(without(stream, {1: [register_id(0)]})))]
    assert counts == ["30", "30", "29", "29", "30", "30"]


# --- the register list


def test_a_span_covers_count_and_arrays() -> None:
    body = recorded(N1).sections[recorded(N1).index("cpu")].body
    registers = RegisterList(bytearray(b"\xaa" * 13 + body), 13 + CPREG_COUNT_AT, 0)
    start, end = registers.span
    assert (start, end) == (13 + CPREG_COUNT_AT, 13 + CPREG_COUNT_AT + 4 + 16 * len(registers))
    assert registers.without(()) == body[start - 13 : end - 13]
    assert registers.without(registers.ids) == bytes(4)
    assert registers.without([0, 1]) == registers.without(())
