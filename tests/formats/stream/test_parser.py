"""The parser of whole streams: chunks, states, refusals, and ends."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import (
    DeviceStateTooLargeError,
    EncryptedStreamError,
    ForeignStreamError,
    FormatError,
    MalformedStreamError,
    RefusedStreamError,
    TruncatedStreamError,
    UnlocatableSectionError,
    UnsupportedFeatureError,
)
from formats.frame.event import NEED_DATA
from formats.frame.records import CommandType, RecordType
from formats.limits import DEFAULT_DEVICE_STATE_LIMIT
from formats.stream.events import Command, Configuration, IterableData, LateVmdesc
from formats.stream.grammar import ACCEPTS, State
from formats.stream.parser import StreamParser
from formats.vmstate.device_state import DeviceState
from formats.vmstate.vcpus import open_vcpus
from tests.streams import (
    EOF,
    FILE_HEADER,
    NAMES,
    RAM_EOS,
    RAM_ID,
    SMP2,
    WHOLE,
    Reading,
    Seen,
    be32,
    be64,
    buffer_section,
    capture,
    collect,
    command,
    configuration,
    configuration_subsection,
    counted,
    cut,
    footer,
    pieces_of,
    ram_page,
    ram_setup,
    ram_zero,
    recorded,
    section_end,
    section_header,
    section_part,
    section_start,
    short,
    short_head,
    small,
    tiny,
    tiny_head,
    vmdesc_record,
)


@cache
def seen_whole(stream: bytes) -> list[Seen]:
    """Return the events of a stream that came in one piece."""
    reading = collect([stream])
    assert reading.raw == stream
    return reading.seen


def reused(reading: Reading, stream: bytes, cuts: "list[int] | range") -> None:
    """Feed the stream as a relay does: from one buffer that is overwritten after each round of events."""
    buffer = bytearray(max(len(stream), 1))
    for piece in cut(stream, cuts):
        view = memoryview(buffer)[: len(piece)]
        view[:] = piece
        reading.feed(view)
        buffer[: len(piece)] = b"\xcc" * len(piece)
    reading.feed(b"")


# --- chunks


def cuts_of(stream: bytes) -> st.SearchStrategy[list[int]]:
    """Places to cut a stream at: anywhere, and many about the places where an event begins or ends."""
    edges = [event.offset for event in seen_whole(stream)] + [len(stream)]
    for event in seen_whole(stream):
        if event.kind is DeviceState:
            sections = event.details[0]
            assert isinstance(sections, tuple)
            edges += [event.offset + at for section in sections for at in (section.body, section.body_end)]
            edges.append(event.offset + sections[-1].end + 6)
    near = st.tuples(st.sampled_from(edges), st.integers(-20, 20)).map(sum)
    burst = st.tuples(near, st.integers(1, 30), st.integers(1, 3)).map(lambda x: range(x[0], x[0] + x[1] * x[2], x[2]))
    return st.tuples(st.lists(near | st.integers(0, len(stream)), max_size=30), st.lists(burst, max_size=4)).map(
        lambda drawn: drawn[0] + [at for some in drawn[1] for at in some]
    )


@pytest.mark.parametrize("name", WHOLE)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_chunks_of_a_recorded_stream(data: st.DataObject, name: str) -> None:
    stream = capture(name)
    reading = Reading()
    reused(reading, stream, data.draw(cuts_of(stream)))
    assert reading.raw == stream
    assert reading.seen == seen_whole(stream)
    assert reading.parser.offset == len(stream)


@pytest.mark.parametrize("bare", [False, True], ids=["vmdesc", "no vmdesc"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_chunks_of_a_synthetic_stream(data: st.DataObject, bare: bool) -> None:
    stream = small().bare() if bare else small().stream()
    reading = Reading()
    reused(reading, stream, data.draw(cuts_of(stream)))
    assert reading.raw == stream
    assert reading.seen == seen_whole(stream)


@pytest.mark.parametrize("bare", [False, True], ids=["vmdesc", "no vmdesc"])
@pytest.mark.parametrize("name", ["small", "tiny", *NAMES])
def test_byte_by_byte(name: str, bare: bool) -> None:
    parts = {"small": small(), "tiny": tiny()}.get(name) or short(name)
    stream = parts.bare() if bare else parts.stream()
    reading = Reading()
    reused(reading, stream, range(len(stream)))
    assert reading.raw == stream
    assert reading.seen == seen_whole(stream)
    assert reading.parser.complete


def test_a_stream_with_everything_in_it() -> None:
    """Two kinds of iterable sections in turns, every configuration subsection, and what the events say of them."""
    bitmap = bytes([0x10 | 0x08 | 0x04]) + counted("drive") + counted("bitmap") + be32(65536) + b"\x01"
    head = (
        FILE_HEADER
        + configuration("m" * 255, page_bits=14, capabilities=["x-ignore-shared", "x"], uuid=bytes(range(16)))
        + command(1)
        + command(2, be32(1))
        + section_start(7, "dirty-bitmap", bitmap + b"\x01", version=1)
        + section_start(2, "ram", ram_setup({"a": 0x8000}, addresses=[0x10 << 56]) + RAM_EOS)
        + section_part(7, b"\x01")
        + section_part(2, be64(0x08) + counted("a") + b"\x7e" * 0x4000 + ram_zero(0x4000) + RAM_EOS)
        + section_start(9, "block", be64(2))
        + command(11)
        + section_end(2, RAM_EOS)
        + section_end(7, b"\x01")
        + section_end(9, be64(2))
    )
    stream = head + small().devices + EOF + vmdesc_record(small().vmdesc())
    for size in (1, 13, len(stream)):
        reading = Reading()
        reused(reading, stream, range(0, len(stream), size))
        assert reading.raw == stream
    parser, seen = reading.parser, reading.seen
    assert (parser.machine, parser.return_path, parser.complete) == ("m" * 255, True, True)
    assert parser.ram is not None
    assert (parser.ram.blocks, parser.ram.full_pages, parser.ram.zero_pages) == ({"a": 0x8000}, 1, 1)
    (configured,) = [event for event in seen if event.kind is Configuration]
    assert configured.details == ("m" * 255, 14, ("x-ignore-shared", "x"), bytes(range(16)))
    commands = [event.details for event in seen if event.kind is Command]
    assert commands == [
        (CommandType.OPEN_RETURN_PATH, b""),
        (CommandType.PING, be32(1)),
        (CommandType.SWITCHOVER_START, b""),
    ]
    begun = [event.details for event in seen if event.kind.__name__ == "SectionBegin"]
    assert [(kind, name, version) for kind, _, name, _, version in begun] == [
        (RecordType.SECTION_START, "dirty-bitmap", 1),
        (RecordType.SECTION_START, "ram", 4),
        (RecordType.SECTION_PART, "dirty-bitmap", 1),
        (RecordType.SECTION_PART, "ram", 4),
        (RecordType.SECTION_START, "block", 4),
        (RecordType.SECTION_END, "ram", 4),
        (RecordType.SECTION_END, "dirty-bitmap", 1),
        (RecordType.SECTION_END, "block", 4),
    ]


def test_a_stream_without_configuration() -> None:
    stream = short_head(configured=b"", commands=b"") + small().devices + EOF + vmdesc_record(small().vmdesc())
    reading = collect([stream])
    assert (reading.raw, reading.parser.machine, reading.parser.return_path) == (stream, None, False)
    assert not any(isinstance(event, Configuration) for event in reading.events)


def test_the_shape_of_a_recorded_stream() -> None:
    seen = seen_whole(capture(SMP2))
    kinds = [event.kind.__name__ for event in seen]
    assert kinds[:2] == ["FileHeader", "Configuration"]
    assert kinds[-1] == "DeviceState"
    assert set("".join(kinds[2:-1]).replace("SectionBeginIterableDataSectionFooter", "-")) == {"-"}
    assert kinds.count("DeviceState") == 1


def test_ram_passes_while_the_device_state_is_held() -> None:
    parts = small()
    reading = Reading()
    for piece in pieces_of(parts.head, 100):
        reading.feed(piece)
    assert reading.raw == parts.head
    for piece in pieces_of(parts.stream()[len(parts.head) : -1], 100):
        reading.feed(piece)
        assert reading.raw == parts.head, "a byte of the device state was released before it was all there"
    reading.feed(parts.stream()[-1:])
    assert reading.raw == parts.stream()


# --- states


def parser_in(state: State) -> tuple[StreamParser, int]:
    """Return a parser that expects a record in `state`, and how many bytes are behind it."""
    body = section_start(RAM_ID, "ram", ram_setup({"a": 0x1000}) + RAM_EOS)
    stream = {
        State.FIRST_RECORD: FILE_HEADER,
        State.RECORD: FILE_HEADER + configuration() + body + section_end(RAM_ID, RAM_EOS),
        State.ITERABLE_FOOTER: (FILE_HEADER + configuration() + body)[:-5],
        State.AFTER_EOF: small().bare(),
    }[state]
    reading = Reading()
    reading.feed(stream)
    if state is State.RECORD:
        # The configuration is known to have ended only when something follows it: RAM did.
        assert reading.raw == stream
    if state is State.AFTER_EOF:
        reading.parser.vmdesc_overdue()
        reading.drain()
    assert reading.parser.state is state
    return reading.parser, len(stream)


BETWEEN_RECORDS = [State.FIRST_RECORD, State.RECORD, State.ITERABLE_FOOTER, State.AFTER_EOF]


def test_the_table_has_all_the_states_between_records() -> None:
    assert set(ACCEPTS) == set(BETWEEN_RECORDS)


@pytest.mark.parametrize("state", BETWEEN_RECORDS)
def test_every_first_byte_in_every_state(state: State) -> None:
    accepted = {int(record) for record in ACCEPTS[state]}
    for byte in range(256):
        parser, offset = parser_in(state)
        parser.feed(bytes([byte]))
        if byte in accepted:
            assert parser.next_event() is NEED_DATA
            assert parser.state is not State.ERROR
            continue
        expected = UnlocatableSectionError if state is State.ITERABLE_FOOTER else MalformedStreamError
        with pytest.raises(expected) as caught:
            parser.next_event()
        assert type(caught.value) is expected
        assert caught.value.offset == offset
        parser.feed(EOF)
        for _ in range(2):
            with pytest.raises(expected) as again:
                parser.next_event()
            assert again.value is caught.value
        assert parser.state is State.ERROR
        assert not parser.complete


def test_what_the_table_accepts_is_what_qemu_sends() -> None:
    """The table itself, held against `qemu_loadvm_state_main`."""
    names = {state: {record.name for record in accepted} for state, accepted in ACCEPTS.items()}
    assert names == {
        State.FIRST_RECORD: {"CONFIGURATION", "SECTION_START", "SECTION_FULL", "COMMAND"},
        State.RECORD: {"SECTION_START", "SECTION_PART", "SECTION_END", "SECTION_FULL", "COMMAND", "EOF"},
        State.ITERABLE_FOOTER: {"SECTION_FOOTER"},
        State.AFTER_EOF: {"VMDESCRIPTION"},
    }


def test_an_accepted_record_leads_on() -> None:
    """After each record type in each state comes an event, or, for device sections, the hold."""
    records: dict[RecordType, tuple[bytes, State]] = {
        RecordType.CONFIGURATION: (configuration() + command(1), State.RECORD),
        RecordType.SECTION_START: (section_header(1, 9, "ram"), State.ITERABLE_BODY),
        RecordType.SECTION_PART: (b"\x02" + be32(RAM_ID), State.ITERABLE_BODY),
        RecordType.SECTION_END: (b"\x03" + be32(RAM_ID), State.ITERABLE_BODY),
        RecordType.SECTION_FULL: (section_header(4, 9, "timer"), State.DEVICE_STATE),
        RecordType.COMMAND: (command(2, be32(1)), State.RECORD),
        RecordType.EOF: (EOF, State.DEVICE_STATE),
        RecordType.SECTION_FOOTER: (footer(RAM_ID), State.RECORD),
        RecordType.VMDESCRIPTION: (vmdesc_record(small().vmdesc()), State.DONE),
    }
    for state, accepted in ACCEPTS.items():
        for record_type in accepted:
            raw, then = records[record_type]
            parser, _ = parser_in(state)
            parser.feed(raw)
            while parser.next_event() is not NEED_DATA:
                pass
            assert parser.state is then, (state, record_type)


# --- refusals


HEAD = FILE_HEADER + configuration() + command(1)


def error_of(stream: bytes, size: int, device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT) -> FormatError:
    """Return the error that a stream ends in; it must be the same when asked again."""
    reading = Reading(device_state_limit)
    with pytest.raises(FormatError) as caught:
        reading.feed_all(pieces_of(stream, size))
    with pytest.raises(FormatError) as again:
        reading.feed(EOF)
    assert again.value is caught.value
    assert stream.startswith(reading.raw)
    return caught.value


REFUSED: dict[str, tuple[bytes, bytes, type[FormatError], str]] = {
    "postcopy listen": (HEAD, command(4), UnsupportedFeatureError, "postcopy"),
    "postcopy run": (HEAD, command(5), UnsupportedFeatureError, "postcopy"),
    "odd postcopy advise": (HEAD, command(3, bytes(15)), MalformedStreamError, "POSTCOPY_ADVISE of 15 bytes"),
    "postcopy discard": (HEAD, command(6, bytes(30)), MalformedStreamError, "without POSTCOPY_ADVISE"),
    "packaged": (tiny_head(), command(7, be32(1000)), MalformedStreamError, "without POSTCOPY_ADVISE"),
    "packaged without a length": (HEAD + command(3), command(7), MalformedStreamError, "0 bytes of length"),
    "a large package": (HEAD + command(3), command(7, be32(65 << 20)), DeviceStateTooLargeError, "device-state-limit"),
    "no package": (HEAD + command(3) + command(7, be32(20)), b"", MalformedStreamError, "POSTCOPY_LISTEN"),
    "COLO": (tiny_head(), command(8), UnsupportedFeatureError, "COLO"),
    "postcopy resume": (HEAD, command(9), UnsupportedFeatureError, "postcopy recovery"),
    "receive bitmap": (HEAD, command(10, b"\x03ram"), UnsupportedFeatureError, "postcopy recovery"),
    "unknown command": (HEAD, command(12), UnsupportedFeatureError, "command 12"),
    "unknown large command": (HEAD, command(0xFFFF, b"x"), UnsupportedFeatureError, "command 65535"),
    "unknown configuration subsection": (
        FILE_HEADER,
        configuration() + configuration_subsection("new", b"") + command(1),
        UnsupportedFeatureError,
        "configuration/new",
    ),
    "mapped-ram": (
        FILE_HEADER,
        configuration(capabilities=["x-ignore-shared", "mapped-ram"]) + command(1),
        UnsupportedFeatureError,
        "mapped-ram",
    ),
    "multifd": (FILE_HEADER, configuration(capabilities=["multifd"]) + command(1), UnsupportedFeatureError, "multifd"),
    "RDMA": (
        HEAD + section_header(1, 2, "ram", 0, 4),
        be64(0x80),
        UnsupportedFeatureError,
        "rdma",
    ),
    "unknown iterable section": (
        tiny_head(),
        section_header(1, 9, "spapr/htab"),
        UnlocatableSectionError,
        "spapr/htab",
    ),
    "no footer": (
        HEAD + section_start(2, "ram", RAM_EOS)[:-5],
        section_header(4, 3, "timer"),
        UnlocatableSectionError,
        "footer",
    ),
    "part without start": (HEAD, b"\x02" + be32(2), MalformedStreamError, "section 2"),
    "end without start": (tiny_head(), b"\x03" + be32(2), MalformedStreamError, "section 2"),
    "second start": (tiny_head(), section_header(1, RAM_ID, "ram"), MalformedStreamError, "section 1"),
    "footer of another": (
        HEAD + section_start(2, "ram", RAM_EOS)[:-5],
        footer(3),
        MalformedStreamError,
        "section 3, not 2",
    ),
    "unknown RAM flags": (HEAD + section_header(1, 2, "ram", 0, 4), be64(0x1), MalformedStreamError, "flags 0x1"),
    "version 2": (b"", b"QEVM" + be32(2), MalformedStreamError, "version 2"),
    "page bits 9": (FILE_HEADER, configuration(page_bits=9) + command(1), MalformedStreamError, "9 bits"),
    "page bits 17": (FILE_HEADER, configuration(page_bits=17) + command(1), MalformedStreamError, "17 bits"),
    "endless machine": (FILE_HEADER, b"\x07\xff\xff\xff\xff", MalformedStreamError, "parse"),
    "second configuration": (HEAD, configuration(), MalformedStreamError, "0x07"),
    "vmdesc without an end of file": (tiny_head(), vmdesc_record(b"{}"), MalformedStreamError, "0x06"),
}


@pytest.mark.parametrize("size", [1, 1 << 20], ids=["bytes", "whole"])
@pytest.mark.parametrize(("before", "refused", "kind", "match"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(before: bytes, refused: bytes, kind: type[FormatError], match: str, size: int) -> None:
    error = error_of(before + refused + bytes(40), size)
    assert type(error) is kind
    assert match in str(error)
    assert len(before) <= error.offset <= len(before) + len(refused)


@pytest.mark.parametrize(
    "name", ["a large package", "postcopy listen", "COLO", "mapped-ram", "unknown iterable section", "no footer"]
)
def test_a_refusal_says_the_way_out(name: str) -> None:
    before, refused, _, _ = REFUSED[name]
    assert error_of(before + refused + bytes(40), 1 << 20).advice


FOREIGN = {
    "TLS": (bytes.fromhex("160301020001000001fc0303") + bytes(40), "TLS"),
    "multifd": (bytes.fromhex("1122334400000001") + bytes(56), "multifd"),
    "libvirt": (b"LibvirtQemudSave\x02\0\0\0" + bytes(72), "libvirt"),
    "xz": (bytes.fromhex("fd377a585a000004e6d6b446"), "xz"),
    "gzip": (bytes.fromhex("1f8b0800000000000003"), "gzip"),
    "zstd": (bytes.fromhex("28b52ffd04580900"), "zstd"),
    "zeroes": (bytes(64), "00 00 00 00"),
    "text": (b"GET / HTTP/1.1\r\n\r\n", "47 45 54 20"),
    "nearly": (b"QEVN" + be32(3), "51 45 56 4e"),
    "postcopy preempt": (b"\x00", "00"),
    "three": (b"abc", "61 62 63"),
}


@pytest.mark.parametrize("size", [1, 2, 5, 1 << 20], ids=["bytes", "pairs", "fives", "whole"])
@pytest.mark.parametrize(("stream", "match"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_streams(stream: bytes, match: str, size: int) -> None:
    error = error_of(stream, size)
    assert type(error) is (EncryptedStreamError if match == "TLS" else ForeignStreamError)
    assert match in str(error)
    assert error.offset == 0


@pytest.mark.parametrize("length", range(8))
def test_nothing_but_part_of_a_header_is_truncated(length: int) -> None:
    error = error_of(FILE_HEADER[:length], 1)
    assert type(error) is TruncatedStreamError
    assert error.offset == length


# --- ends


def test_truncated_at_every_offset() -> None:
    parts = tiny()
    stream = parts.stream()
    complete = len(parts.bare())
    for end in range(len(stream)):
        reading = Reading()
        if end == complete:
            reading.feed(stream[:end])
            reading.feed(b"")
            assert reading.parser.complete
            assert reading.raw == stream[:end]
            continue
        with pytest.raises(TruncatedStreamError) as caught:
            reading.feed_all([stream[:end]])
        assert caught.value.offset == end
        assert stream.startswith(reading.raw)
        assert len(reading.raw) <= len(parts.head), "part of a device state was released"


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_stream_truncated(name: str) -> None:
    stream = capture(name)
    complete = len(recorded(name).bare())
    chance = random.Random(name)
    edges = [event.offset for event in seen_whole(stream)] + [complete]
    ends = {edge + by for edge in edges[-8:] for by in range(-2, 7)} | {
        chance.randrange(len(stream)) for _ in range(30)
    }
    for end in sorted(ends - {complete}):
        if end >= len(stream):
            continue
        reading = Reading()
        with pytest.raises(TruncatedStreamError) as caught:
            reading.feed_all([stream[:end]])
        assert caught.value.offset <= end
        assert stream.startswith(reading.raw)
    assert collect([stream[:complete]]).raw == stream[:complete]


def test_an_end_in_mid_stream_names_what_was_expected() -> None:
    ram = HEAD + section_header(1, 2, "ram", 0, 4)
    assert "'ram' instance 0" in str(error_of(ram + ram_setup({"a": 0x1000}), 5))
    assert "device state" in str(error_of(small().bare()[:-20], 500))


@pytest.mark.parametrize("trailing", [b"\0", b"QEVM", b"\x06" + be32(2) + b"{}", bytes(5000)])
def test_bytes_after_the_end(trailing: bytes) -> None:
    stream = small().stream()
    reading = Reading()
    reading.feed(stream)
    assert reading.parser.complete
    with pytest.raises(MalformedStreamError) as caught:
        reading.feed(trailing)
    assert caught.value.offset == len(stream)
    assert reading.raw == stream
    assert not reading.parser.complete


def test_a_checkpoint_after_the_end_is_refused_by_name() -> None:
    """What QEMU 11.1 sends first of COLO, a while after the guest has come to the destination."""
    reading = Reading()
    reading.feed(small().stream())
    with pytest.raises(UnsupportedFeatureError, match="COLO is not supported; turn the capability x-colo off"):
        reading.feed(be32(1))


@pytest.mark.parametrize("trailing", [b"\0", b"QEVM", bytes(5000)])
def test_bytes_after_the_end_in_the_same_chunk(trailing: bytes) -> None:
    error = error_of(small().stream() + trailing, 1 << 20)
    assert isinstance(error, MalformedStreamError)
    assert error.offset <= len(small().stream() + trailing)


def test_bytes_after_the_end_are_not_called_too_few() -> None:
    """In whatever chunks: what follows the end is no sign of a stream that was cut off."""
    assert not isinstance(error_of(small().stream() + bytes(100), 1 << 20), TruncatedStreamError)


@pytest.mark.parametrize("trailing", [b"\0", b"QEVM", b"\x06"])
def test_bytes_after_an_end_without_vmdesc(trailing: bytes) -> None:
    stream = small().bare()
    reading = Reading()
    reading.feed(stream)
    reading.parser.vmdesc_overdue()
    reading.drain()
    assert reading.raw == stream
    with pytest.raises(MalformedStreamError):
        reading.feed_all([trailing])


# --- small records


ZEROES = ram_zero(0, "mach-virt.ram") + ram_zero(0x1000) + ram_zero(0x2000)
PAGES = ram_page(0, bytes(4096), "mach-virt.ram")


@pytest.mark.parametrize(
    ("records", "amid"),
    [
        (ZEROES, True),
        (PAGES[:-1], False),
        (ZEROES + RAM_EOS, False),
        (ZEROES + RAM_EOS + footer(RAM_ID), False),
    ],
    ids=["zeroes", "cut page", "end", "footer"],
)
@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_among_small_records(records: bytes, amid: bool, chunk: int) -> None:
    stream = short_head()
    head = stream[: stream.rindex(section_end(RAM_ID, RAM_EOS))]
    for type_ in RecordType.SECTION_PART, RecordType.SECTION_END:
        reading = Reading()
        assert not reading.parser.amid_small_records
        for piece in pieces_of(head + bytes([type_]) + be32(RAM_ID) + records, chunk):
            reading.feed(piece)
        assert reading.parser.amid_small_records == (amid and type_ is RecordType.SECTION_PART)


# --- a vmdesc that is overdue, and one that comes late


def overdue(stream: bytes, size: int = 1 << 20) -> Reading:
    """Feed a stream without vmdesc, and say that none comes."""
    reading = Reading()
    for piece in pieces_of(stream, size):
        assert not reading.parser.complete
        reading.feed(piece)
    assert reading.parser.awaiting_vmdesc
    assert not reading.states
    assert not reading.parser.complete
    reading.parser.vmdesc_overdue()
    reading.drain()
    assert reading.parser.state is State.AFTER_EOF
    return reading


@pytest.mark.parametrize("name", NAMES)
def test_an_overdue_vmdesc(name: str) -> None:
    stream = recorded(name).bare()
    reading = overdue(stream, 65536)
    assert reading.raw == stream
    assert reading.parser.complete
    assert reading.states[0].vmdesc is None
    reading.feed(b"")
    assert reading.raw == stream


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_late_vmdesc_that_agrees(size: int) -> None:
    parts = small()
    reading = overdue(parts.bare())
    # What was changed meanwhile must not matter.
    midr = 0x603000000013C000
    (registers,) = open_vcpus(reading.states[0])
    registers[midr] = 0x7E00000000000404
    before = len(reading.raw)
    for piece in pieces_of(vmdesc_record(parts.vmdesc()), size):
        reading.feed(piece)
    assert reading.seen[-1].kind is LateVmdesc
    assert reading.seen[-1].offset == before
    assert reading.raw == parts.stream()
    assert reading.parser.state is State.DONE
    reading.feed(b"")
    with pytest.raises(MalformedStreamError):
        reading.feed(b"\0")


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_vmdesc_that_comes_late(name: str) -> None:
    parts = recorded(name)
    reading = overdue(parts.bare())
    reading.feed(capture(name)[len(parts.bare()) :])
    assert reading.raw == capture(name)


def shorter(devices: list[dict[str, object]]) -> None:
    devices[2]["fields"] = [{"name": "buffer", "type": "buffer", "size": 100}]


LATE_LIES: dict[str, Callable[[list[dict[str, object]]], object]] = {
    "a length": shorter,
    "a name": lambda devices: devices[0].update(name="tImer"),
    "an instance": lambda devices: devices[3].update(instance_id=1),
    "one too few": lambda devices: devices.pop(),
    "none": lambda devices: devices.clear(),
    "one too many": lambda devices: devices.append(devices[-1]),
    "another order": lambda devices: devices.reverse(),
}


@pytest.mark.parametrize("lie", LATE_LIES.values(), ids=LATE_LIES)
def test_a_late_vmdesc_that_disagrees(lie: Callable[[list[dict[str, object]]], object]) -> None:
    parts = small()
    vmdesc = parts.vmdesc()
    lie(vmdesc["devices"])
    reading = overdue(parts.bare())
    with pytest.raises(UnlocatableSectionError):
        reading.feed(vmdesc_record(vmdesc))
    assert reading.raw == parts.bare()


def test_a_late_vmdesc_that_is_none() -> None:
    for text in (b"", b"{", b"[]", b'{"devices": 1}'):
        reading = overdue(small().bare())
        with pytest.raises(MalformedStreamError):
            reading.feed(vmdesc_record(text))


def test_a_late_vmdesc_that_is_cut() -> None:
    record = vmdesc_record(small().vmdesc())
    for end in (1, 4, 5, 6, len(record) - 1):
        reading = overdue(small().bare())
        reading.feed(record[:end])
        assert reading.raw == small().bare()
        with pytest.raises(TruncatedStreamError):
            reading.feed(b"")


def test_a_late_vmdesc_is_bounded() -> None:
    reading = overdue(small().bare())
    with pytest.raises(DeviceStateTooLargeError):
        reading.feed(b"\x06\xff\xff\xff\xff")


def test_what_only_looks_like_the_end_is_waited_on() -> None:
    """A footer and a zero in mid-section: when the vmdesc is overdue, nothing is released, and nothing is lost."""
    parts = small()
    index = parts.index("pl011")
    body = footer(99) + b"\0" + bytes(143)
    stream = parts.replaced(index, type(parts.sections[0])(5, "pl011", 0, 2, body, parts.sections[index].description))
    whole = stream.stream()
    at = whole.index(footer(99)) + 6
    reading = Reading()
    reading.feed(whole[:at])
    assert reading.parser.awaiting_vmdesc
    reading.parser.vmdesc_overdue()
    reading.drain()
    assert reading.raw == parts.head
    reading.feed(whole[at:])
    assert reading.raw == whole
    assert reading.states[0].vmdesc is not None


def waived(stream: bytes) -> Reading:
    """Feed a stream to what may be its end, and say that nothing waits for a vmdesc."""
    reading = Reading()
    reading.feed(stream)
    assert reading.parser.awaiting_vmdesc
    reading.parser.without_vmdesc()
    reading.drain()
    return reading


@pytest.mark.parametrize("name", NAMES)
def test_a_vmdesc_that_nothing_waits_for(name: str) -> None:
    parts = recorded(name)
    reading = waived(parts.bare())
    assert reading.raw == parts.bare()
    assert reading.parser.state is State.AFTER_EOF
    reading.feed(capture(name)[len(parts.bare()) :])
    assert reading.raw == capture(name)


def test_a_doubt_is_waited_out() -> None:
    """Footers that allow two ways: the vmdesc decides when it comes, and it is an error only if it does not."""
    parts = small()
    sections = parts.sections[-2:]
    body = sections[0].body + footer(sections[0].section_id) + sections[1].header + sections[1].body
    doubtful = parts.replaced(len(parts.sections) - 2, buffer_section(sections[0].section_id, sections[0].name, body))
    reading = waived(doubtful.bare())
    assert reading.raw == parts.head
    assert reading.parser.awaiting_vmdesc
    reading.feed(vmdesc_record(doubtful.vmdesc()))
    assert reading.raw == doubtful.stream()
    assert reading.states[0].vmdesc is not None
    with pytest.raises(UnlocatableSectionError):
        overdue(doubtful.bare())


def test_what_follows_a_state_that_only_seemed_whole_is_an_error() -> None:
    """A guest that has a footer and a zero placed where a chunk ends hurts its own migration only."""
    parts = small()
    index = parts.index("pl011")
    section = parts.sections[index]
    body = footer(section.section_id) + b"\0" + bytes(len(section.body) - 6)
    whole = parts.replaced(index, replace(section, body=body)).stream()
    end = whole.index(footer(section.section_id) + b"\0") + 6
    reading = waived(whole[:end])
    assert reading.raw == whole[:end]
    with pytest.raises(MalformedStreamError):
        reading.feed(whole[end:])
    assert reading.raw == whole[:end]


def test_the_vmdesc_is_not_overdue_before_the_device_state() -> None:
    """A caller that is too early changes nothing for the device state that comes later."""
    parts = small()
    reading = Reading()
    reading.feed(parts.head[:-40])
    reading.parser.vmdesc_overdue()
    reading.drain()
    reading.feed(parts.bare()[len(parts.head) - 40 :])
    assert reading.raw == parts.head
    assert reading.parser.awaiting_vmdesc
    reading.feed(parts.stream()[len(parts.bare()) :])
    assert reading.raw == parts.stream()
    assert reading.states[0].vmdesc is not None


# --- limits


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_the_device_state_limit(size: int) -> None:
    parts = small()
    held = len(parts.stream()) - len(parts.head)
    assert collect(pieces_of(parts.stream(), size), device_state_limit=held).raw == parts.stream()
    error = error_of(parts.stream(), size, device_state_limit=held - 1)
    assert type(error) is DeviceStateTooLargeError
    assert "--device-state-limit" in error.advice
    assert error.offset == len(parts.head)


def test_ram_does_not_count_against_the_limit() -> None:
    parts = small()
    reading = collect([capture(SMP2)[: len(recorded(SMP2).head)] + parts.devices + EOF], device_state_limit=6000)
    assert reading.parser.complete


# --- what was not passed on


def test_unread_gives_back_all_that_is_in_no_event() -> None:
    stream = small().stream()
    for end in [3, 8, 30, 64, len(small().head) - 3, len(small().head) + 7, len(stream) - 1]:
        reading = Reading()
        reading.feed(stream[:end])
        assert reading.raw + reading.parser.unread() == stream[:end]
        assert reading.parser.unread() == b""


def test_unread_after_an_error() -> None:
    stream = tiny_head() + section_header(1, 9, "spapr/htab") + bytes(40)
    reading = Reading()
    with pytest.raises(RefusedStreamError):
        reading.feed(stream)
    assert reading.raw + reading.parser.unread() == stream


def test_events_of_iterable_data_are_views() -> None:
    """RAM is passed on from the caller's own buffer, not copied."""
    stream = bytearray(capture(SMP2)[:200_000])
    parser = StreamParser()
    parser.feed(stream)
    while not isinstance(event := parser.next_event(), IterableData):
        pass
    assert isinstance(event.raw, memoryview)
    assert event.raw.obj is stream


# --- whatever comes


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_stream_raises_nothing_else(seed: int) -> None:
    """Some bytes of a stream are changed, removed or doubled: it passes, or there is a `FormatError`."""
    chance = random.Random(seed)
    stream = bytearray(chance.choice([small().stream(), small().bare(), tiny().stream(), short(SMP2).stream()]))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(stream))
        match chance.randrange(5):
            case 0:
                stream[at] ^= 1 << chance.randrange(8)
            case 1:
                stream[at : at + chance.randint(1, 30)] = b""
            case 2:
                stream[at:at] = stream[at : at + chance.randint(1, 300)]
            case 3:
                stream[at : at + 8] = chance.choice([b"\xff" * 8, bytes(8), b"\x7e" * 8, chance.randbytes(8)])
            case _:
                stream[at] = chance.choice([0, 1, 4, 5, 6, 7, 8, 0x7E, 0xFF])
    reading = Reading()
    try:
        for piece in (*cut(bytes(stream), [chance.randrange(len(stream)) for _ in range(4)]), b""):
            reading.feed(piece)
            for state in reading.states:
                open_vcpus(state)
    except FormatError:
        pass
    else:
        assert reading.parser.complete
        assert reading.raw == bytes(stream)
    assert bytes(stream).startswith(reading.raw)
