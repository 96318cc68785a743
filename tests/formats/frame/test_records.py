"""The schemas of the frame's small records."""

from typing import TYPE_CHECKING, Any

import pytest

from formats.errors import MalformedStreamError
from formats.frame import records
from formats.frame.records import read
from tests.streams import be32, command, configuration, counted, footer, section_header

if TYPE_CHECKING:
    from construct import Construct


RECORDS = [
    pytest.param(records.FILE_HEADER, b"QEVM\0\0\0\3", {"version": 3}, id="file header"),
    pytest.param(
        records.SECTION_HEADER,
        section_header(4, 7, "0000:00:01.0/virtio-net", 2, 11),
        {"type": 4, "section_id": 7, "name": "0000:00:01.0/virtio-net", "instance_id": 2, "version_id": 11},
        id="section header",
    ),
    pytest.param(
        records.SECTION_HEADER,
        section_header(1, 0xFFFFFFFF, "n" * 255, 0xFFFFFFFE, 0xFFFFFFFD),
        {"section_id": 0xFFFFFFFF, "name": "n" * 255, "instance_id": 0xFFFFFFFE, "version_id": 0xFFFFFFFD},
        id="longest section header",
    ),
    pytest.param(records.SECTION_REFERENCE, footer(258), {"type": 0x7E, "section_id": 258}, id="footer"),
    pytest.param(records.COMMAND, command(2, be32(9)), {"command": 2, "payload": be32(9)}, id="command"),
    pytest.param(records.COMMAND, command(1), {"command": 1, "payload": b""}, id="empty command"),
    pytest.param(records.COMMAND, command(7, b"\x08" * 0xFFFF), {"payload": b"\x08" * 0xFFFF}, id="longest command"),
    pytest.param(
        records.CONFIGURATION, configuration("virt-7.2", page_bits=None), {"machine": b"virt-7.2"}, id="configuration"
    ),
    pytest.param(
        records.CONFIGURATION, configuration("m" * 255, page_bits=None), {"machine": b"m" * 255}, id="longest machine"
    ),
    pytest.param(
        records.SUBSECTION_HEADER,
        b"\x05\x12configuration/uuid" + be32(1),
        {"name": "configuration/uuid", "version_id": 1},
        id="subsection",
    ),
    pytest.param(records.VMDESCRIPTION_HEADER, b"\x06\0\1\0\2", {"type": 6, "length": 65538}, id="vmdesc"),
]


@pytest.mark.parametrize("trailing", [b"", b"\x00", b"\xff" * 300], ids=["alone", "one more", "many more"])
@pytest.mark.parametrize(("schema", "raw", "expected"), RECORDS)
def test_a_record_is_read_exactly(
    schema: "Construct[Any, Any]", raw: bytes, expected: dict[str, object], trailing: bytes
) -> None:
    found = read(schema, memoryview(raw + trailing), 0)
    assert found is not None
    assert found[1] == len(raw)
    assert {key: found[0][key] for key in expected} == expected


@pytest.mark.parametrize(("schema", "raw", "expected"), RECORDS)
def test_a_record_cut_anywhere_needs_more(schema: "Construct[Any, Any]", raw: bytes, expected: object) -> None:
    for end in range(min(len(raw), 600)):
        assert read(schema, memoryview(raw[:end]), 0) is None
    assert read(schema, memoryview(raw[:-1]), 0) is None


def test_capabilities_are_counted_strings() -> None:
    schema = records.CONFIGURATION_SUBSECTIONS["configuration/capabilities"]
    raw = be32(3) + counted("mapped-ram") + counted("") + counted("abc")
    found = read(schema, memoryview(raw + b"x"), 0)
    assert found is not None
    assert (list(found[0]), found[1]) == (["mapped-ram", "", "abc"], len(raw))


@pytest.mark.parametrize(
    ("schema", "raw"),
    [
        pytest.param(records.FILE_HEADER, b"QEVN\0\0\0\3", id="magic"),
        pytest.param(records.CONFIGURATION, b"\x07" + be32(256), id="machine name too long"),
        pytest.param(records.CONFIGURATION, b"\x07\xff\xff\xff\xff", id="machine name without end"),
        pytest.param(records.SECTION_HEADER, section_header(4, 1, "caf\xe9"), id="section name not ASCII"),
        pytest.param(records.SUBSECTION_HEADER, b"\x04\x01a" + be32(1), id="no subsection"),
    ],
)
def test_what_cannot_be_a_record_is_malformed_where_it_stands(schema: "Construct[Any, Any]", raw: bytes) -> None:
    with pytest.raises(MalformedStreamError) as caught:
        read(schema, memoryview(raw), 1234)
    assert caught.value.offset == 1234


def test_endless_capabilities_are_malformed_before_they_are_read() -> None:
    schema = records.CONFIGURATION_SUBSECTIONS["configuration/capabilities"]
    with pytest.raises(MalformedStreamError):
        read(schema, memoryview(b"\xff\xff\xff\xff"), 0)


def test_the_longest_records_fit_the_window() -> None:
    assert len(command(1, bytes(0xFFFF))) == records.LONGEST_RECORD
    assert records.LONGEST_RECORD >= 4 + 255 * 256
