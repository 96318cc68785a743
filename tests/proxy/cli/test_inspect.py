"""`inspect`: what is in a stream."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1, Kind, describe
from formats.stream.events import SectionBegin, SectionFooter
from tests import streams
from tests.captures import CAPTURES, read_manifest
from tests.proxy.cli.command_line import SMP2, Result
from tests.proxy.helpers import NAMES, capture, device_state, events, live, profile, short, value, without_vmdesc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("name", NAMES)
def test_inspect_json(run: Callable[..., Result], name: str) -> None:
    stream = capture(name)
    result = run("inspect", CAPTURES / f"{name}.xz", "--json")
    assert result.code == 0
    assert result.err == ""
    found = result.json
    assert found["schema_version"] == 1
    assert found["machine"] == "virt-7.2"
    assert all(
        section.keys() == {"offset", "length", "type", "id", "name", "instance", "version"}
        for section in found["sections"]
    )
    position = 61
    types = {1: "start", 2: "part", 3: "end", 4: "full"}
    for section in found["sections"]:
        assert section["offset"] == position
        assert section["type"] == types[stream[position]]
        (section_id,) = struct.unpack_from(">I", stream, position + 1)
        assert section["id"] == section_id
        if section["type"] in ("start", "full"):
            assert stream[position + 6 :].startswith(section["name"].encode())
            after = position + 6 + stream[position + 5]
            assert (section["instance"], section["version"]) == struct.unpack_from(">II", stream, after)
        position += section["length"]
        assert stream[position - 5 : position] == b"\x7e" + struct.pack(">I", section_id)
    assert stream[position : position + 2] == b"\x00\x06"
    assert position == len(without_vmdesc(stream)) - 1
    assert sum(section["length"] for section in found["sections"]) == position - 61

    count = next(int(one.vcpus) for one in read_manifest() if one.name == name)
    assert [vcpu["index"] for vcpu in found["vcpus"]] == list(range(count))
    for vcpu in found["vcpus"]:
        assert vcpu.keys() == {"index", "features", "registers"}
        told = {one["feature"]: one for one in vcpu["features"]}
        assert told["EL1_32BIT"]["evidence"] == "the processor is in AArch64 state (PSTATE 0x400003c5)"
        assert told["PMU_V3"]["present"]
        assert told["PMU_V3"]["evidence"].startswith("PMCR_EL0 is among its registers, ID_AA64DFR0_EL1.PMUVer is ")
        assert not told["SVE"]["present"]
        for register in vcpu["registers"]:
            assert register.keys() == {"id", "name", "value"}
            assert re.fullmatch(r"0x[0-9a-f]{16}", register["id"])
            assert re.fullmatch(r"0x[0-9a-f]+", register["value"])
        names = {register["name"]: register["value"] for register in vcpu["registers"]}
        assert len(names) == len(vcpu["registers"]) == (241 if "bookworm" in name else 258)
        assert int(names["MIDR_EL1"], 16) == value(stream, MIDR_EL1, vcpu["index"])


def test_inspect_for_people(run: Callable[..., Result]) -> None:
    result = run("inspect", CAPTURES / f"{SMP2}.xz")
    text = result.out.decode()
    assert result.code == 0
    assert f"machine virt-7.2, return path no, vmdesc yes, {len(capture(SMP2))} bytes" in text
    section = next(section for section in device_state(capture(SMP2)).sections if section.name == "cpu")
    start, length = device_state(capture(SMP2)).offset + section.start, section.end - section.start
    assert re.search(rf"^ +{start:#x} +{length} full +6 +0 +22 +cpu$", text, re.MULTILINE)
    assert len(re.findall("MIDR_EL1 .* 0x411fd070", text)) == 2
    assert "TTBR0_EL1" not in text
    assert text.count("\n  0x") == 2 * sum(
        describe(register).kind in (Kind.IDENTIFICATION, Kind.CACHE_ID) for register in profile(SMP2).values
    )
    everything = run("inspect", CAPTURES / f"{SMP2}.xz", "--registers").out.decode()
    assert everything.count("\n  0x") == 2 * 258


def test_inspect_without_a_vmdesc(run: Callable[..., Result]) -> None:
    with_it = run("inspect", "-", "--json", stdin=live(short(SMP2))).json
    without = run("inspect", "-", "--json", stdin=without_vmdesc(live(short(SMP2)))).json
    assert with_it["sections"] == without["sections"]
    assert with_it["vcpus"] == without["vcpus"]
    assert (with_it["vmdesc"], without["vmdesc"]) == (True, False)
    assert with_it["return_path"]


@pytest.mark.parametrize("length", [100, 61_000, 300_000, 500_000])
def test_inspecting_a_truncated_stream_shows_what_was_read(run: Callable[..., Result], length: int) -> None:
    stream = capture(SMP2)
    begun = [event for event in events(stream) if isinstance(event, SectionBegin) and event.offset < length]
    ended = [event for event in events(stream) if isinstance(event, SectionFooter) and event.offset + 5 <= length]
    result = run("inspect", "-", "--json", stdin=stream[:length])
    assert result.code == 3
    assert "the stream ends" in result.error()
    found = result.json
    assert found["machine"] == "virt-7.2"
    assert [section["offset"] for section in found["sections"]] == [event.offset for event in begun]
    for section, footer in zip(found["sections"], ended, strict=False):
        assert section["offset"] + section["length"] == footer.offset + 5

    shown = run("inspect", "-", stdin=stream[:length])
    assert shown.code == 3
    assert "machine virt-7.2" in shown.out.decode()
    assert len(re.findall(r" ram$", shown.out.decode(), re.MULTILINE)) == len(begun)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x89PNG\r\n", "this is no migration stream"),
        (b"", "the stream ends where the file header should follow"),
        (b"QEVM\0\0\0\x03", "the stream ends where the configuration"),
        (b"QEVM\0\0\0\x03no stream", "offset 0x8"),
    ],
)
def test_what_is_no_stream_has_no_table(run: Callable[..., Result], tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "photo").write_bytes(content)
    result = run("inspect", tmp_path / "photo")
    assert (result.code, result.out) == (3, b"")
    assert says in result.error()


def test_a_stream_cut_before_its_sections_has_no_table(run: Callable[..., Result]) -> None:
    result = run("inspect", "-", stdin=capture(SMP2)[:62])
    assert result.code == 3
    (line,) = result.out.decode().splitlines()
    assert line.startswith("machine virt-7.2")
    assert line.endswith("61 bytes, 0 sections, 0 arm64 vCPUs")


def test_of_many_sections_the_first_are_named(run: Callable[..., Result]) -> None:
    error = run("inspect", CAPTURES / "tcg-q35.xz", "--section", "nosuch").error()
    assert "has no device section 'nosuch'; it has 0000:00:00.0/mch, " in error
    assert re.search(r", and \d+ more, which inspect lists$", error)


def test_an_iterable_section_is_not_denied(run: Callable[..., Result]) -> None:
    result = run("inspect", CAPTURES / f"{SMP2}.xz", "--section", "ra?")
    assert (result.code, result.out) == (2, b"")
    assert "ram of " in result.error()
    assert "an iterable section, whose records are stepped over and not decoded" in result.error()


@pytest.mark.parametrize(("name", "nothing"), [("dirty-bitmap", b"\x01"), ("block", streams.be64(2))])
def test_nor_is_one_of_disks(run: Callable[..., Result], name: str, nothing: bytes) -> None:
    small = streams.small()
    disks = streams.section_start(8, name, nothing, version=1) + streams.section_end(8, nothing)
    stream = replace(small, head=small.head + disks).stream()
    assert re.search(rf" {name}$", run("inspect", "-", stdin=stream).out.decode(), re.MULTILINE)
    result = run("inspect", "-", "--section", name, stdin=stream)
    assert (result.code, result.out) == (2, b"")
    assert f"{name} of -: an iterable section, whose records are stepped over" in result.error()
