"""The `cpu` section: its schema, and the view that patches its registers."""

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.arm.register_list import RegisterList
from formats.errors import FormatError, MalformedStreamError, UnknownCpuVersionError
from formats.vmstate.cpu_section import CPU, SUBSECTIONS, VERSION, body_end, cpregs_end, is_arm64, open_registers
from formats.vmstate.vmdesc import Layout, parse_vmdesc
from tests.streams import (
    CPREG_COUNT_AT,
    MIDR,
    NAMES,
    Section,
    be32,
    be64,
    counted,
    cpreg_ids,
    cpu_body,
    cpu_section,
    irq_line_subsection,
    recorded,
    registers_of,
    size_of,
)

AFTER_CPREGS = 65
MIDR_EL1 = 0x603000000013C000
PREFIX, SUFFIX = b"\x7e" * 33, b"\x05" * 50
"""What stands before and after a body in its buffer."""


def cpus() -> list[Any]:
    return [
        pytest.param(section, id=f"{name} {section.instance}")
        for name in NAMES
        for section in recorded(name).sections
        if section.name == "cpu"
    ]


def layout_of(section: Section, **changes: object) -> Layout:
    return parse_vmdesc(json.dumps({"devices": [{**section.description, **changes}]}).encode(), 0).devices[0].layout


def opened(
    body: bytes, *, version: int = VERSION, vcpu: int = 3, layout: Layout | None = None
) -> tuple[RegisterList, bytearray]:
    held = bytearray(PREFIX + body + SUFFIX)
    end = len(PREFIX) + len(body)
    registers = open_registers(held, len(PREFIX), end, version=version, vcpu=vcpu, layout=layout, offset=1000)
    return registers, held


IDS = cpreg_ids(20)
VALUES = [MIDR, *range(1, 20)]
SECTION = cpu_section(4, IDS, VALUES)


# --- recorded ones


@pytest.mark.parametrize("described", [False, True], ids=["schema", "vmdesc"])
@pytest.mark.parametrize("section", cpus())
def test_the_registers_are_those_of_the_wire(section: Section, described: bool) -> None:
    registers, _ = opened(section.body, layout=layout_of(section) if described else None)
    expected = registers_of(section)
    assert len(expected) > 200
    assert dict(registers.items()) == expected
    assert registers.ids == tuple(expected) == tuple(sorted(expected))
    assert len(registers) == len(expected)
    assert registers.vcpu == 3
    assert all(registers[number] == registers.get(number) == value for number, value in expected.items())
    assert all(number in registers for number in expected)
    assert 1 not in registers
    assert registers.get(1) is None
    with pytest.raises(KeyError):
        registers[1]


@pytest.mark.parametrize("section", cpus())
def test_a_value_is_patched_in_its_eight_bytes_and_nowhere_else(section: Section) -> None:
    registers, held = opened(section.body)
    before = bytes(held)
    for index, number in enumerate(registers.ids):
        old = registers[number]
        registers[number] = old ^ 0xFFFFFFFFFFFFFFFF
        at = len(PREFIX) + CPREG_COUNT_AT + 4 + 8 * len(registers) + 8 * index
        assert held[at : at + 8] == be64(old ^ 0xFFFFFFFFFFFFFFFF)
        assert held[:at] + be64(old) + held[at + 8 :] == before
        registers[number] = old
    assert held == before
    with pytest.raises(KeyError):
        registers[1] = 0
    assert held == before


@pytest.mark.parametrize("value", [1 << 64, -1])
def test_a_value_that_does_not_fit_changes_nothing(value: int) -> None:
    registers, held = opened(SECTION.body)
    before = bytes(held)
    with pytest.raises((struct.error, OverflowError, ValueError)):
        registers[MIDR_EL1] = value
    assert held == before


@pytest.mark.parametrize("section", cpus())
def test_the_schema_reads_a_recorded_body(section: Section) -> None:
    parsed = CPU.parse(section.body)
    registers, _ = opened(section.body)
    assert list(parsed.cpreg_vmstate_indexes) == list(registers.ids)
    assert list(zip(parsed.cpreg_vmstate_indexes, parsed.cpreg_vmstate_values, strict=True)) == list(registers.items())
    position = CPREG_COUNT_AT + 4 + 16 * len(registers) + AFTER_CPREGS
    assert CPU.build(parsed) == section.body[:position]
    assert parsed.pc == int.from_bytes(section.body[64 + 256 : 64 + 256 + 8], "big")
    assert parsed.power_state in (False, True)
    # What follows are subsections, each as long as its schema says.
    names = []
    while position < len(section.body):
        assert section.body[position] == 5
        name = section.body[position + 2 : position + 2 + section.body[position + 1]].decode()
        names.append(name)
        position += 2 + len(name) + 4 + SUBSECTIONS[name].sizeof()
    assert position == len(section.body)
    assert "cpu/vfp" in names


@pytest.mark.parametrize("section", cpus())
def test_where_a_recorded_body_ends(section: Section) -> None:
    held = bytearray(section.body + b"\x7e\0\0\0\4")
    cpregs = CPREG_COUNT_AT + 4 + 16 * len(registers_of(section)) + AFTER_CPREGS
    assert cpregs_end(held, 0, len(held)) == cpregs
    assert body_end(held, 0, len(held)) == len(section.body)


# --- subsections


@pytest.mark.parametrize("name", SUBSECTIONS)
def test_each_known_subsection_is_stepped_over(name: str) -> None:
    content = b"\x7e" * SUBSECTIONS[name].sizeof()
    tail = b"\x05" + counted(name) + be32(1) + content + irq_line_subsection()
    body = cpu_body(IDS, VALUES, tail)
    assert body_end(bytearray(body + b"\x7e"), 0, len(body) + 1) == len(body)
    for cut in range(1, len(tail) - len(irq_line_subsection())):
        end = len(body) - len(tail) + cut
        assert body_end(bytearray(body), 0, end) in (None, len(body) - len(tail))
    assert dict(opened(body)[0].items()) == dict(zip(IDS, VALUES, strict=True))


def test_the_sizes_of_subsections() -> None:
    """Held against `target/arm/machine.c`."""
    sizes = {name.removeprefix("cpu/"): schema.sizeof() for name, schema in SUBSECTIONS.items()}
    assert sizes == {
        "vfp": 32 * 2 * 8 + 16 * 4,
        "vfp/fpcr_fpsr": 16,
        "iwmmxt": 16 * 8 + 16 * 4,
        "thumb2ee": 8,
        "sve": 32 * 14 * 8 + 17 * 4 * 8,
        "sme": 256 * 256,
        "serror": 10,
        "irq-line-state": 4,
        "wfxt-timer": 8,
    }


def test_an_unknown_subsection_leaves_the_end_open() -> None:
    tail = irq_line_subsection() + b"\x05" + counted("cpu/m") + be32(1) + bytes(30)
    body = cpu_body(IDS, VALUES, tail)
    assert body_end(bytearray(body), 0, len(body)) is None
    # The registers stand before it, so they are known all the same, where something else tells the end.
    assert opened(body)[0][MIDR_EL1] == MIDR


def test_bytes_that_are_no_subsection_are_refused() -> None:
    for tail in (b"\0", b"\x04", bytes(40), irq_line_subsection() + b"\x7e"):
        with pytest.raises(UnknownCpuVersionError, match="known layout"):
            opened(cpu_body(IDS, VALUES, tail))


# --- broken ones


@pytest.mark.parametrize(
    "ids",
    [
        [MIDR_EL1, MIDR_EL1],
        [MIDR_EL1 + 1, MIDR_EL1],
        [*IDS[:10], IDS[3], *IDS[11:]],
        [*IDS[:-1], 0],
        [1 << 63, MIDR_EL1],
    ],
)
def test_ids_that_do_not_ascend(ids: list[int]) -> None:
    body = cpu_body(ids, [0] * len(ids))
    assert cpregs_end(bytearray(body), 0, len(body)) is None
    assert body_end(bytearray(body), 0, len(body)) is None
    with pytest.raises(MalformedStreamError, match="out of order") as caught:
        opened(body)
    assert caught.value.offset == 1000
    assert caught.value.section == "'cpu' instance 3"


def test_the_whole_range_of_ids_ascends_unsigned() -> None:
    ids = [0, 1, MIDR_EL1, 1 << 63, 2**64 - 1]
    registers, _ = opened(cpu_body(ids, [2**64 - 1, 0, 1, 1 << 63, 5]))
    assert list(registers.items()) == [(0, 2**64 - 1), (1, 0), (MIDR_EL1, 1), (1 << 63, 1 << 63), (2**64 - 1, 5)]


@pytest.mark.parametrize("count", [0, 1, 15, 300])
def test_lists_of_any_length(count: int) -> None:
    ids, values = cpreg_ids(count), list(range(count))
    body = cpu_body(ids, values, irq_line_subsection())
    section = cpu_section(1, ids, values)
    for layout in (None, layout_of(section)):
        assert list(opened(body, layout=layout)[0].items()) == list(zip(ids, values, strict=True))


def test_a_body_that_is_cut_anywhere() -> None:
    body = cpu_body(IDS, VALUES)
    for end in range(len(body)):
        assert cpregs_end(bytearray(body), 0, end) is None
        with pytest.raises(MalformedStreamError, match="cut off"):
            opened(body[:end])
    assert cpregs_end(bytearray(body), 0, len(body)) == len(body)


@pytest.mark.parametrize("count", [21, 255, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_count_larger_than_the_list(count: int) -> None:
    body = cpu_body(IDS, VALUES)
    body = body[:CPREG_COUNT_AT] + be32(count) + body[CPREG_COUNT_AT + 4 :]
    with pytest.raises(MalformedStreamError):
        opened(body)


@pytest.mark.parametrize("count", [0, 19])
def test_a_count_smaller_than_the_list(count: int) -> None:
    body = cpu_body(IDS, VALUES)
    body = body[:CPREG_COUNT_AT] + be32(count) + body[CPREG_COUNT_AT + 4 :]
    with pytest.raises(FormatError):
        opened(body)


@pytest.mark.parametrize("version", [0, 12, 21, 23, 2**32 - 1])
def test_another_version(version: int) -> None:
    with pytest.raises(UnknownCpuVersionError, match=f"version {version}") as caught:
        opened(SECTION.body, version=version)
    assert caught.value.advice


# --- what the vmdesc says


def fields_changed(index: int, **changes: object) -> Layout:
    fields = [dict(member) for member in SECTION.description["fields"]]
    fields[index].update(changes)
    return layout_of(SECTION, fields=fields)


LEN, INDEXES, ARRAY_VALUES = 2, 3, 4


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(fields_changed(LEN, name="cpreg_len"), id="no length"),
        pytest.param(fields_changed(INDEXES, name="cpreg_indexes"), id="no indexes"),
        pytest.param(fields_changed(ARRAY_VALUES, name="cpreg_values"), id="no values"),
        pytest.param(fields_changed(INDEXES, array_len=19), id="fewer indexes"),
        pytest.param(fields_changed(ARRAY_VALUES, array_len=21), id="more values"),
        pytest.param(fields_changed(LEN, size=8), id="longer length"),
        pytest.param(fields_changed(1, size=CPREG_COUNT_AT - 64 - 8), id="earlier"),
        pytest.param(fields_changed(0, array_len=17), id="later"),
    ],
)
def test_the_vmdesc_must_agree_with_the_schema(layout: Layout) -> None:
    with pytest.raises(UnknownCpuVersionError, match="the vmdesc does not have cpreg_vmstate"):
        opened(SECTION.body, layout=layout)


def test_a_vmdesc_with_values_before_indexes() -> None:
    fields = list(SECTION.description["fields"])
    fields[INDEXES], fields[ARRAY_VALUES] = fields[ARRAY_VALUES], fields[INDEXES]
    with pytest.raises(UnknownCpuVersionError):
        opened(SECTION.body, layout=layout_of(SECTION, fields=fields))


# --- which are arm64


def other_cpu() -> Section:
    """Return a `cpu` section such as x86 and riscv have: plain registers, and no list of system registers."""
    body = bytes(range(256)) * 8
    fields = [{"name": "env.regs", "type": "uint64", "size": 8, "array_len": 256}]
    description = {"name": "cpu", "instance_id": 0, "vmsd_name": "cpu", "version": 12, "fields": fields}
    assert size_of(description) == len(body)
    return Section(4, "cpu", 0, 12, body, description)


def arm64(body: bytes, layout: Layout | None = None) -> bool:
    return is_arm64(bytearray(PREFIX + body + SUFFIX), len(PREFIX), len(PREFIX) + len(body), layout)


@pytest.mark.parametrize("section", cpus())
def test_recorded_sections_are_arm64(section: Section) -> None:
    assert arm64(section.body)
    assert arm64(section.body, layout_of(section))


def test_other_architectures_are_not() -> None:
    other = other_cpu()
    assert not arm64(other.body)
    assert not arm64(other.body, layout_of(other))
    for body in (b"", bytes(5000), b"\xff" * 5000, b"\x60\x30" + bytes(5000), (b"\x60\x30" + bytes(6)) * 15):
        assert not arm64(body)


def test_the_search_stays_within_the_section() -> None:
    ids = b"".join(be64(number) for number in cpreg_ids(40))
    held = bytearray(ids + bytes(100) + ids)
    assert not is_arm64(held, len(ids), len(ids) + 100, None)
    assert not is_arm64(held, len(ids) - 100, len(ids) + 100 + 100, None)
    assert is_arm64(held, 0, len(ids), None)


def test_a_row_of_ids_is_found_wherever_it_stands() -> None:
    """Layouts that are not known have it elsewhere."""
    ids = b"".join(be64(number) for number in cpreg_ids(17))
    for shift in range(8):
        assert arm64(bytes(99 + shift) + ids)
    aarch32 = b"".join(be64(0x4020000000100000 + number) for number in range(16))
    assert arm64(aarch32)


@pytest.mark.parametrize("index", [LEN, INDEXES, ARRAY_VALUES])
def test_a_renamed_field_does_not_make_it_another_architecture(index: int) -> None:
    assert arm64(SECTION.body, fields_changed(index, name="renamed"))


def test_a_vmdesc_that_keeps_the_arrays_to_itself_does_not_make_it_another_architecture() -> None:
    """The registers of an arm64 processor stand in the section, whatever its description calls them."""
    buffer = [{"name": "buffer", "type": "buffer", "size": len(SECTION.body)}]
    assert arm64(SECTION.body, layout_of(SECTION, fields=buffer, subsections=[]))


# --- properties


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), min_size=1, max_size=60),
    st.binary(max_size=20),
    st.data(),
)
def test_any_list_is_read_and_patched(registers: dict[int, int], before: bytes, data: st.DataObject) -> None:
    ids = sorted(registers)
    body = cpu_body(ids, [registers[number] for number in ids], irq_line_subsection())
    held = bytearray(before + body)
    view = open_registers(held, len(before), len(held), version=VERSION, vcpu=0, layout=None, offset=0)
    assert dict(view.items()) == registers
    number, value = data.draw(st.sampled_from(ids)), data.draw(st.integers(0, 2**64 - 1))
    view[number] = value
    registers[number] = value
    assert held == before + cpu_body(ids, [registers[number] for number in ids], irq_line_subsection())
