"""The vmdesc: layouts, their schemas, and JSON that describes nothing."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import FormatError, MalformedStreamError
from formats.vmstate.vmdesc import Layout, parse_vmdesc
from tests.streams import NAMES, be32, counted, device_state, recorded, size_of, small


def layout(**description: object) -> Layout:
    """Parse the description of one device; return its layout."""
    device = {"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, **description}
    (described,) = parse_vmdesc(json.dumps({"devices": [device]}).encode(), 0).devices
    return described.layout


def member(name: str, size: int, kind: str = "buffer", **more: object) -> dict[str, Any]:
    return {"name": name, "type": kind, "size": size, **more}


def sub(name: str, *fields: dict[str, Any], version: int = 1, subsections: "list[Any] | None" = None) -> dict[str, Any]:
    return {"vmsd_name": name, "version": version, "fields": list(fields), "subsections": subsections or []}


def struct_of(*fields: dict[str, Any], subsections: "list[Any] | None" = None) -> dict[str, Any]:
    return {"vmsd_name": "s", "version": 1, "fields": list(fields), "subsections": subsections or []}


# --- layouts


def test_sizes() -> None:
    assert layout(fields=[]).size == 0
    assert layout().size == 0
    assert layout(fields=[member("a", 4), member("b", 0), member("c", 7)]).size == 11
    assert (
        layout(fields=[member("a", 4, array_len=3), member("b", 4, array_len=0), member("c", 4, array_len=1)]).size
        == 16
    )
    nested = sub("d/one", member("x", 3), subsections=[sub("d/one/two", member("y", 2))])
    assert layout(fields=[member("a", 1)], subsections=[nested]).size == 1 + (6 + 5 + 3) + (6 + 9 + 2)


def test_a_struct_and_an_array_of_structs() -> None:
    inner = struct_of(member("x", 2, "uint16"), member("y", 1, "uint8", array_len=3))
    found = layout(
        fields=[member("one", 5, "struct", struct=inner), member("many", 5, "struct", struct=inner, array_len=4)]
    )
    assert found.size == 25
    parsed = found.schema.parse(bytes(range(25)))
    assert (parsed.one.x, list(parsed.one.y)) == (0x0001, [2, 3, 4])
    assert [element.x for element in parsed.many] == [0x0506, 0x0A0B, 0x0F10, 0x1415]


def test_indexes_tell_elements_apart() -> None:
    found = layout(
        fields=[member("a", 2, "uint16", index=0), member("a", 3, index=1), member("a", 1, "uint8", index=2)]
    )
    assert [field.name for field in found.fields] == ["a[0]", "a[1]", "a[2]"]
    assert found.field("a[1]") == (2, found.fields[1])
    assert found.field("a[2]") == (5, found.fields[2])
    assert found.field("a") is None


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        ("uint8", b"\xff", 255),
        ("uint16", b"\xff\xfe", 65534),
        ("uint32", b"\xff\xff\xff\xfe", 2**32 - 2),
        ("uint64", b"\xff" * 7 + b"\xfe", 2**64 - 2),
        ("int8", b"\xfe", -2),
        ("int16", b"\xff\xfe", -2),
        ("int32", b"\xff\xff\xff\xfe", -2),
        ("int64", b"\xff" * 7 + b"\xfe", -2),
        ("int32 le", b"\0\0\1\2", 258),
        ("uint32 equal", b"\0\0\1\2", 258),
        ("bool", b"\1", True),
        ("timer", bytes(6) + b"\1\2", 258),
        ("buffer", b"\1\2\3", b"\1\2\3"),
        ("cpsr", b"\1\2\3\4", b"\1\2\3\4"),
        ("uint32", b"\1\2\3", b"\1\2\3"),
        ("", b"\1", b"\1"),
    ],
)
def test_types(kind: str, raw: bytes, value: object) -> None:
    found = layout(fields=[member("a", len(raw), kind), member("b", len(raw), kind, array_len=2)])
    parsed = found.schema.parse(raw * 3)
    assert parsed.a == value
    assert list(parsed.b) == [value, value]


def test_a_subsection_must_stand_where_it_is_described() -> None:
    found = layout(
        fields=[member("a", 1)],
        subsections=[sub("d/one", member("x", 2, "uint16"), version=7), sub("d/two", subsections=[sub("d/two/x")])],
    )
    one = b"\x05" + counted("d/one") + be32(7)
    two = b"\x05" + counted("d/two") + be32(1)
    three = b"\x05" + counted("d/two/x") + be32(1)
    body = b"a" + one + b"\x01\x02" + two + three
    assert len(body) == found.size
    assert found.schema.parse(body)["d/one"].state.x == 0x0102
    expected = [(1, one), (1 + len(one) + 2, two), (1 + len(one) + 2 + len(two), three)]
    assert list(found.headers) == expected


def test_subsections_within_arrays_of_structs() -> None:
    inner = struct_of(member("x", 1), subsections=[sub("s/one", member("y", 2))])
    size = 1 + 6 + 5 + 2
    found = layout(
        fields=[
            member("first", 3),
            member("one", size, "struct", struct=inner),
            member("many", size, "struct", struct=inner, array_len=3),
        ]
    )
    header = b"\x05" + counted("s/one") + be32(1)
    assert list(found.headers) == [(3 + 1 + number * size, header) for number in range(4)]
    assert found.has_subsections
    assert not layout(fields=[member("a", 1)]).has_subsections


def test_the_old_style_has_no_name() -> None:
    device = {"name": "slirp", "instance_id": 3, "size": 8, "fields": [{"name": "data", "size": 8, "type": "buffer"}]}
    (found,) = parse_vmdesc(json.dumps({"devices": [device]}).encode(), 0).devices
    assert (found.name, found.instance_id, found.layout.name, found.layout.version, found.layout.size) == (
        "slirp", 3, None, None, 8,
    )  # fmt: skip


# --- recorded ones


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_of_every_recorded_device_takes_its_body_and_no_more(name: str) -> None:
    parts = recorded(name)
    state = device_state(parts.stream())
    by_footers = device_state(parts.bare())
    assert state.vmdesc is not None
    assert len(state.vmdesc.devices) == len(parts.sections)
    for device, section, found in zip(state.vmdesc.devices, parts.sections, by_footers.sections, strict=True):
        assert (device.name, device.instance_id) == (section.name, section.instance)
        assert device.layout.size == size_of(section.description) == len(section.body) == found.body_end - found.body
        schema = device.layout.schema
        assert schema.sizeof() == len(section.body)
        parsed = schema.parse(section.body)
        assert schema.build(parsed) == section.body
        with pytest.raises(Exception, match=r"stream|header|more bytes|expected"):
            schema.parse(section.body[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_the_registers_of_a_recorded_cpu_by_its_schema(name: str) -> None:
    state = device_state(recorded(name).stream())
    for section in state.sections:
        if section.name != "cpu":
            continue
        assert section.layout is not None
        parsed = section.layout.schema.parse(bytes(state.held[section.body : section.body_end]))
        ids = list(parsed.cpreg_vmstate_indexes)
        assert parsed.cpreg_vmstate_array_len == len(ids)
        midr = dict(zip(ids, parsed.cpreg_vmstate_values, strict=True))[0x603000000013C000]
        assert midr >> 24 == 0x41


# --- what is none


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{}",
        b"null",
        b"[]",
        b'"devices"',
        b"\xff\xfe",
        b'{"devices": [}',
        b'{"devices": null}',
        b'{"devices": 7}',
        b'{"devices": "timer"}',
        b'{"devices": {"timer": 1}}',
        b'{"devices": [null]}',
        b'{"devices": [[]]}',
        b'{"devices": ["name"]}',
        b'{"devices": [{}]}',
        b'{"devices": []} x',
        b'{"devices": []',
        b'{"devices": [' + b"9" * 10_000 + b"]}",
        b'{"devices": ' + b"[" * 100_000,
        b'{"devices":' * 100_000,
        b'{"devices": [{"name": "d", "instance_id": 0, "fields": [' + b'{"struct":' * 50_000,
    ],
)
def test_broken_json(text: bytes) -> None:
    with pytest.raises(MalformedStreamError) as caught:
        parse_vmdesc(text, 77)
    assert (caught.value.offset, caught.value.section) == (77, "vmdesc")


BAD_COUNTS: list[object] = [-1, 2**32, 10**30, 1.0, 1.5, float("nan"), True, None, "4", [], {}]


@pytest.mark.parametrize("bad", BAD_COUNTS, ids=repr)
@pytest.mark.parametrize("key", ["size", "array_len", "index"])
def test_field_counts(key: str, bad: object) -> None:
    with pytest.raises(MalformedStreamError):
        layout(fields=[{**member("a", 4), key: bad}])


@pytest.mark.parametrize("bad", BAD_COUNTS, ids=repr)
def test_ids_and_versions(bad: object) -> None:
    with pytest.raises(MalformedStreamError):
        layout(instance_id=bad)
    if bad is not None:
        with pytest.raises(MalformedStreamError):
            layout(version=bad)


@pytest.mark.parametrize("bad", [7, [], {}, True, "caf\u00e9", "\ud800"], ids=ascii)
def test_names(bad: object) -> None:
    for description in (
        {"name": bad},
        {"vmsd_name": bad},
        {"fields": [{**member("a", 1), "name": bad}]},
        {"fields": [{**member("a", 1), "type": bad}]},
        {"subsections": [{"vmsd_name": bad, "version": 1, "fields": []}]},
    ):
        with pytest.raises(MalformedStreamError):
            layout(**description)


@pytest.mark.parametrize("key", ["name", "type", "size"])
def test_a_field_without(key: str) -> None:
    broken = member("a", 1)
    del broken[key]
    with pytest.raises(MalformedStreamError):
        layout(fields=[broken])


@pytest.mark.parametrize("bad", [None, 3, "x", [1], ["x"], [None], [[]], {"a": 1}], ids=repr)
def test_fields_and_subsections_of_wrong_types(bad: object) -> None:
    for description in (
        {"fields": bad},
        {"subsections": bad},
        {"fields": [member("s", 0, "struct", struct={"fields": bad})]},
        {"subsections": [{"vmsd_name": "d/s", "version": 1, "fields": bad}]},
    ):
        with pytest.raises(MalformedStreamError):
            layout(**description)


@pytest.mark.parametrize("size", [0, 4, 6, 10])
def test_a_struct_has_the_size_of_its_fields(size: int) -> None:
    inner = struct_of(member("x", 2), member("y", 3))
    with pytest.raises(MalformedStreamError, match="5 bytes"):
        layout(fields=[member("s", size, "struct", struct=inner, array_len=2)])


@pytest.mark.parametrize("length", [256, 1000])
def test_a_subsection_name_that_has_no_length_byte(length: int) -> None:
    for subsections in ([sub("x" * length)], [sub("d/s", subsections=[sub("x" * length)])]):
        with pytest.raises(MalformedStreamError):
            assert layout(subsections=subsections).size


@pytest.mark.parametrize("inside", ["struct", "subsections"])
def test_nesting_is_bounded(inside: str) -> None:
    def nested(depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {"vmsd_name": "", "version": 0, "fields": [], "subsections": []}
        for _ in range(depth):
            size = size_of(found)
            outer = {"vmsd_name": "", "version": 0}
            found = {**outer, inside: [found]} if inside == "subsections" else {
                **outer, "fields": [member("s", size, "struct", struct=found)],
            }  # fmt: skip
        return found

    assert layout(**nested(20), name="d").size == (120 if inside == "subsections" else 0)
    for depth in (80, 150):
        with pytest.raises(MalformedStreamError):
            layout(**nested(depth))


def test_huge_arrays_hang_nothing() -> None:
    """Arrays of the largest count, nested: sizes are told at once, and no stream is as long."""
    most = 2**32 - 1
    inner = struct_of(member("x", 1), subsections=[sub("s/one")])
    parts = small()
    for fields in (
        [member("a", most, array_len=most)],
        [member("a", 0, array_len=most)],
        [member("a", 12, "struct", struct=inner, array_len=most)],
        [member("a", 0, "struct", struct=struct_of(), array_len=most)],
        [member("a", 1, array_len=most)] * 1000,
    ):
        vmdesc = parts.vmdesc()
        vmdesc["devices"][2]["fields"] = fields
        started = time.process_time()
        with pytest.raises(FormatError):
            device_state(parts.stream(vmdesc))
        assert time.process_time() - started < 1


def test_a_large_vmdesc_is_parsed_in_time() -> None:
    text = json.dumps(
        {"devices": [{"name": f"d{n}", "instance_id": n, "fields": [member("a", 1)] * 50} for n in range(400)]}
    )
    started = time.process_time()
    assert len(parse_vmdesc(text.encode(), 0).devices) == 400
    assert time.process_time() - started < 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.sampled_from(["", "a", "uint32", "x" * 256, "\u00e9"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "instance_id",
                    "vmsd_name",
                    "version",
                    "fields",
                    "subsections",
                    "type",
                    "size",
                    "array_len",
                    "index",
                    "struct",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=150)
@given(st.lists(JSON, max_size=2))
def test_any_json_is_described_or_malformed(devices: list[Any]) -> None:
    """Whatever is in it, there is a layout whose size can be told, or a `MalformedStreamError`."""
    try:
        found = parse_vmdesc(json.dumps({"devices": devices}).encode(), 0)
    except MalformedStreamError:
        return
    for device in found.devices:
        assert device.layout.size >= 0
        assert all(at < device.layout.size for at, _ in device.layout.headers)


# --- layouts that are alike are made once


def devices(*described: dict[str, Any]) -> bytes:
    return json.dumps({"devices": [{"instance_id": at, **one} for at, one in enumerate(described)]}).encode()


def test_devices_with_one_description_share_its_layout() -> None:
    alike = {"name": "cpu", "vmsd_name": "cpu", "version": 22, "fields": [member("a", 4)]}
    other = alike | {"fields": [member("a", 5)]}
    first, second, third = parse_vmdesc(devices(alike, alike, other), 0).devices
    assert first.layout is second.layout
    assert (first.instance_id, second.instance_id) == (0, 1)
    assert (first.layout.size, third.layout.size) == (4, 5)
    assert parse_vmdesc(devices(alike | {"name": "d"}), 0).devices[0].layout is first.layout
    for what in ({"version": 23}, {"vmsd_name": "other"}, {"subsections": [sub("cpu/one")]}):
        assert parse_vmdesc(devices(alike | what), 0).devices[0].layout != first.layout


def test_what_is_longer_than_a_real_layout_is_not_kept() -> None:
    long = {"name": "d", "fields": [member(f"field {number}", 1) for number in range(2000)]}
    first, second = parse_vmdesc(devices(long, long), 0).devices
    assert first.layout == second.layout
    assert first.layout is not second.layout


@pytest.mark.parametrize("wrong", [{"fields": 7}, {"subsections": {}}, {"fields": [{"name": "a"}]}])
def test_a_layout_that_is_none_is_told_each_time(wrong: dict[str, object]) -> None:
    for _ in range(2):
        with pytest.raises(MalformedStreamError, match="does not describe devices"):
            parse_vmdesc(devices({"name": "d", "vmsd_name": "d", **wrong}), 0x10)
