"""Counts changed in a vmdesc: the JSON keeps every other character, however odd it is."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import UnlocatableSectionError
from formats.vmstate.removal import without_registers
from formats.vmstate.vcpus import open_vcpus
from formats.vmstate.vmdesc import parse_vmdesc
from formats.vmstate.vmdesc_counts import vmdesc_with_counts
from tests.streams import be32, changed, device_state, small, vmdesc_record


def fields(count: str = "@", *more: str) -> str:
    """Return the fields of a `cpu`, as JSON with `@` where a count stands."""
    arrays = [
        f'{{"name": "{name}", "type": "uint64", "size": 8, "array_len": {count}}}'
        for name in ("cpreg_vmstate_indexes", "cpreg_vmstate_values")
    ]
    return ", ".join([*more, *arrays])


def cpu(members: str = f'"fields": [{fields()}]', instance: object = 0) -> str:
    return f'{{"name": "cpu", "instance_id": {instance}, "vmsd_name": "cpu", "version": 22, {members}}}'


def vmdesc(*devices: str) -> str:
    return f'{{"page_size": 4096, "devices": [{", ".join(devices)}]}}'


OTHER = '{"name": "timer", "instance_id": 0, "fields": [' + fields("258") + "]}"

ODD = {
    "plain": vmdesc(cpu()),
    "no spaces": vmdesc(cpu()).replace(" ", ""),
    "other spaces": vmdesc(cpu()).replace(" ", "\r\n\t ").replace("@", "\n@\t"),
    "spaces about the whole": f"\n\t {vmdesc(cpu())} \r\n",
    "other devices with such arrays": vmdesc(OTHER, cpu(), OTHER),
    "other instances": vmdesc(cpu(f'"fields": [{fields("258")}]', 1), cpu(), cpu(f'"fields": [{fields("258")}]', 2)),
    "numbers in strings": vmdesc(cpu('"a": "258, 12", "b": "\\"array_len\\": 258", "fields": [' + fields() + "]")),
    "an escaped quote": vmdesc(cpu('"a\\"258": "\\"258", "fields": [' + fields() + "]")),
    "an escaped backslash": vmdesc(cpu('"a": "258\\\\", "b": "\\\\\\\\", "c\\\\": 258, "fields": [' + fields() + "]")),
    "an escaped backslash before a quote": vmdesc(cpu('"a": "\\\\\\"258", "b": 1, "fields": [' + fields() + "]")),
    "every escape": vmdesc(
        cpu('"a": "\\/\\b\\f\\n\\r\\t\\u0022258\\ud83d\\ude00\\ud800", "fields": [' + fields() + "]")
    ),
    "escaped keys": vmdesc(cpu('"fields": [' + fields() + "]")).replace('"array_len"', '"array\\u005flen"'),
    "escaped names": vmdesc(cpu()).replace("cpreg_vmstate", "cpreg\\u005fvmstate").replace('"cpu"', '"\\u0063pu"'),
    "characters of many bytes": vmdesc(cpu('"ü€😀258": "ü€😀", "fields": [' + fields() + "]")),
    "floats": vmdesc(cpu('"a": [1.5, 258.0, -0.258, 1e5, 1E+5, 2.58e-3, -1E-258], "fields": [' + fields() + "]")),
    "negative numbers": vmdesc(cpu('"a": [-1, -258, 0, -0], "b": {"c": -258}, "fields": [' + fields() + "]")),
    "no numbers": vmdesc(cpu('"a": [NaN, Infinity, -Infinity, true, false, null], "fields": [' + fields() + "]")),
    "long numbers": vmdesc(cpu(f'"a": [{"9" * 4000}, -{"9" * 400}], "fields": [{fields()}]')),
    "numbers side by side": vmdesc(cpu('"a":[1,2,-3,4.0,5,[6],{"7":8}],"fields":[' + fields() + "]")),
    "an array length twice": vmdesc(cpu()).replace('"array_len": @', '"array_len": 258, "array_len": @'),
    "a size twice": vmdesc(cpu()).replace('"size": 8', '"size": 16, "size": 8'),
    "fields twice": vmdesc(cpu(f'"fields": [{fields("258")}], "fields": [{fields()}]')),
    "an instance twice": vmdesc(cpu(instance='7, "instance_id": 0')),
    "devices twice": '{"devices": [' + cpu(f'"fields": [{fields("258")}]') + '], "devices": [' + cpu() + "]}",
    "more fields": vmdesc(cpu('"fields": [' + fields("@", '{"name": "x", "type": "uint64", "size": 8}') + "]")),
    "a field of the same name in a subsection": vmdesc(
        cpu(f'"fields": [{fields()}], "subsections": [{{"vmsd_name": "cpu/x", "fields": [{fields("258")}]}}]')
    ),
    "a zero with a sign": vmdesc(cpu()).replace("@", "-0"),
}


def check_json(text: str, old: int, new: int) -> None:
    before, after = (text.replace("@", str(number)).encode() for number in (old, new))
    parse_vmdesc(before, 0)  # as only what the parser took comes here
    assert vmdesc_with_counts(b"\x06" + be32(len(before)) + before, {0: new}, 0) == (b"\x06" + be32(len(after)) + after)
    parse_vmdesc(after, 0)


@pytest.mark.parametrize(("old", "new"), [(258, 241), (258, 7), (9, 1000), (258, 0), (258, 258)])
@pytest.mark.parametrize("what", ODD)
def test_only_the_digits_change(what: str, old: int, new: int) -> None:
    text = ODD[what]
    if what == "a zero with a sign":
        record = b"\x06" + be32(len(text)) + text.encode()
        changed_ = vmdesc_with_counts(record, {0: new}, 0)
        assert changed_[5:].decode() == text.replace("-0", str(new))
        return
    check_json(text, old, new)


JUNK_NUMBERS = st.sampled_from(["258", "-258", "0", "-0", "1.5", "-0.0", "1e5", "1E-5", "2.58E+2", "NaN", "-Infinity"])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_characters="@")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["array_len", "fields", "258", 'a"\\', "ü"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def junk_text(draw: st.DrawFn) -> str:
    """Draw some JSON that means nothing here."""
    if draw(st.booleans()):
        return draw(JUNK_NUMBERS)
    return json.dumps(draw(JUNK), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))


@st.composite
def odd_vmdescs(draw: st.DrawFn) -> str:
    """Draw a vmdesc with `@` where the counts of vCPU 0 stand, with members that nobody knows anywhere."""
    space = st.sampled_from(["", " ", "\n", "\r\n\t"])

    def members(*known: tuple[str, str]) -> str:
        listed = [(key, text) for key, text in known]
        for number in range(draw(st.integers(0, 2))):
            listed.insert(draw(st.integers(0, len(listed))), (f"x{number}", draw(junk_text())))
        inner = f",{draw(space)}".join(f'"{key}"{draw(space)}:{draw(space)}{text}' for key, text in listed)
        return f"{{{draw(space)}{inner}{draw(space)}}}"

    def array(name: str, count: str) -> str:
        return members(("name", f'"{name}"'), ("type", '"uint64"'), ("size", "8"), ("array_len", count))

    def device(instance: int, count: str) -> str:
        arrays = [array("cpreg_vmstate_indexes", count), array("cpreg_vmstate_values", count)]
        return members(
            ("name", '"cpu"'), ("instance_id", str(instance)), ("fields", f"[{','.join(arrays)}{draw(space)}]")
        )

    devices = [device(0, "@"), device(1, "258")]
    if draw(st.booleans()):
        devices.reverse()
    return members(("devices", f"[{', '.join(devices)}]"))


@settings(deadline=None, max_examples=200)
@given(text=odd_vmdescs(), old=st.integers(0, 1000), new=st.integers(0, 1000))
def test_only_the_digits_change_whatever_else_is_there(text: str, old: int, new: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode(errors="replace").decode()
    check_json(text, old, new)


def test_counts_of_several_vcpus() -> None:
    text = vmdesc(cpu(f'"fields": [{fields("1")}]', 1), OTHER, cpu(f'"fields": [{fields("22")}]', 22), cpu())
    record = b"\x06" + be32(len(text)) + text.replace("@", "0").encode()
    out = json.loads(vmdesc_with_counts(record, {0: 1000, 1: 1001, 22: 1022}, 0)[5:])
    assert [[field["array_len"] for field in device["fields"]] for device in out["devices"]] == [
        [1001, 1001],
        [258, 258],
        [1022, 1022],
        [1000, 1000],
    ]


def drop_field(name: str) -> Callable[[list[dict[str, Any]]], object]:
    def change(devices: list[dict[str, Any]]) -> None:
        for device in devices:
            if device["name"] == "cpu":
                device["fields"] = [field for field in device["fields"] if field["name"] != name]

    return change


def in_the_arrays(change: Callable[[dict[str, Any]], object]) -> Callable[[list[dict[str, Any]]], object]:
    def change_all(devices: list[dict[str, Any]]) -> None:
        for device in devices:
            for field in device["fields"] if device["name"] == "cpu" else ():
                if field["name"].startswith("cpreg_vmstate") and "array_len" in field:
                    change(field)

    return change_all


def no_fields(devices: list[dict[str, Any]]) -> None:
    for device in devices:
        if device["name"] == "cpu":
            del device["fields"]


LACKING: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "no cpu": lambda devices: devices.pop(1),
    "another instance": lambda devices: devices[1].update(instance_id=1),
    "two of the instance": lambda devices: devices.append(devices[1]),
    "no indexes": drop_field("cpreg_vmstate_indexes"),
    "no values": drop_field("cpreg_vmstate_values"),
    "no fields": no_fields,
    "no array lengths": in_the_arrays(lambda field: field.pop("array_len")),
    "elements of 16 bytes": in_the_arrays(lambda field: field.update(size=16)),
    "arrays twice": lambda devices: devices[1]["fields"].extend(devices[1]["fields"]),
    "other names": in_the_arrays(lambda field: field.update(name="registers")),
}


@pytest.mark.parametrize("what", LACKING)
def test_a_vmdesc_without_the_arrays(what: str) -> None:
    description = changed(small().vmdesc(), LACKING[what])
    record = vmdesc_record(description)
    parse_vmdesc(record[5:], 0)
    with pytest.raises(UnlocatableSectionError, match="register arrays") as caught:
        vmdesc_with_counts(record, {0: 12}, 0x77)
    assert (caught.value.offset, caught.value.section) == (0x77, "vmdesc")


def test_a_vmdesc_that_lacks_one_of_two_vcpus() -> None:
    with pytest.raises(UnlocatableSectionError):
        vmdesc_with_counts(vmdesc_record(small().vmdesc()), {0: 12, 1: 12}, 0)


@pytest.mark.parametrize("size", [8, 16])
def test_a_stream_whose_vmdesc_states_the_arrays_otherwise(size: int) -> None:
    """One array of 160 bytes, or ten pairs of registers: right for the parser, but nothing to put a count into."""

    def otherwise(field: dict[str, Any]) -> None:
        total = field["size"] * field.pop("array_len")
        field.update({"size": total} if size == 8 else {"size": 16, "array_len": total // 16})

    stream = small().stream(changed(small().vmdesc(), in_the_arrays(otherwise)))
    state = device_state(stream)
    (registers,) = open_vcpus(state)
    assert state.vmdesc is not None
    with pytest.raises(UnlocatableSectionError, match="register arrays"):
        without_registers(state, [(registers, registers.ids[:1])], {0: len(registers) - 1})
