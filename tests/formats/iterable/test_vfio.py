"""The records of `vfio` sections. No such device can be had here, so streams are built as QEMU's source writes them."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import MalformedStreamError
from formats.iterable.kinds import is_iterable, reader_for
from formats.iterable.vfio import VfioReader
from formats.stream.events import IterableData, SectionBegin
from tests.streams import (
    EOF,
    RAM_EOS,
    RAM_ID,
    Parts,
    buffer_section,
    collect,
    command,
    configuration,
    cut,
    pieces_of,
    ram_setup,
    section_end,
    section_part,
    section_start,
    small_sections,
)
from tests.streams import FILE_HEADER as HEADER

FIRST, SECOND = "0000:00:02.0:00.0/vfio", "vfio"
END, CONFIG, SETUP, DATA, INIT_DATA_SENT = (struct.pack(">Q", 0xFFFFFFFFEF100000 + kind) for kind in range(1, 6))


def block(data: bytes) -> bytes:
    """Return what `vfio_save_block` writes; a device that has nothing more has none, which is no record at all."""
    return DATA + struct.pack(">Q", len(data)) + data


def read(data: bytes, cuts: Iterable[int]) -> tuple[int, bool]:
    """Read one body in pieces; return its length and whether it ended."""
    reader, offset = VfioReader(), 0
    for piece in cut(data, cuts):
        buffer = bytearray(piece)
        length, ended = reader.read(memoryview(buffer), offset)
        buffer[:] = b"\xff" * len(buffer)
        offset += length
        if ended:
            return offset, True
        assert length == len(piece)
    return offset, False


BODIES = {
    "setup": SETUP + END,
    "nothing more": END,
    "part": block(b"state" * 1000) + END,
    "the initial data has been sent": block(END * 40) + INIT_DATA_SENT,
    "complete": b"".join(block(bytes([n]) * 2000) for n in range(5)) + END,
    "an empty block": block(b"") + END,
    "with multifd device state": END,
}


@pytest.mark.parametrize("what", BODIES)
def test_a_body_ends_at_its_end(what: str) -> None:
    body = BODIES[what]
    assert read(body + END, ()) == (len(body), True)
    for end in range(min(len(body), 200)):
        assert read(body[:end], ()) == (end, False)
        assert read(body + b"\x7e", [end]) == (len(body), True)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.binary(max_size=100), max_size=6),
    st.sampled_from([END, INIT_DATA_SENT]),
    st.lists(st.integers(0, 700), max_size=20),
    st.sampled_from([b"", END, b"\x7e"]),
)
def test_a_body_in_any_pieces(blocks: list[bytes], last: bytes, cuts: list[int], trailing: bytes) -> None:
    body = b"".join(map(block, blocks)) + last
    assert read(body + trailing, cuts) == (len(body), True)


@pytest.mark.parametrize("flag", [bytes(8), CONFIG, b"\xff" * 8, struct.pack(">Q", 0xFFFFFFFFEF100007)])
def test_no_other_record_comes(flag: bytes) -> None:
    with pytest.raises(MalformedStreamError, match="which no QEMU sends here") as caught:
        read(block(b"abc") + flag, ())
    assert caught.value.offset == 19


def test_its_names() -> None:
    for name in (FIRST, SECOND):
        assert is_iterable(name)
        assert isinstance(reader_for(name, 12, ()), VfioReader)
    for name in ("0000:00:02.0/vfiox", "svfio", "vfio/0", "0000:00:02.0/virtio-net"):
        assert not is_iterable(name)
        assert reader_for(name, 12, ()) is None


# --- in a stream


def stream(*, early: Sequence[bytes] = ()) -> Parts:
    """Return the stream of a guest with two such devices, the second one without precopy."""
    head = (
        HEADER
        + configuration()
        + command(1)
        + section_start(RAM_ID, "ram", ram_setup({"a": 0x4000}) + RAM_EOS)
        + section_start(20, FIRST, SETUP + END, version=1)
        + section_start(21, SECOND, SETUP + END, version=1)
        + section_part(RAM_ID, RAM_EOS)
        + section_part(20, block(b"first" * 3000) + END)
        + section_part(20, block(b"then") + INIT_DATA_SENT)
        + section_end(RAM_ID, RAM_EOS)
        + section_end(20, block(b"x" * 9000) + block(b"y") + END)
        + section_end(21, block(END + SETUP) + END)
    )
    configured = tuple(
        buffer_section(section_id, name, CONFIG + b"what PCI has" * 20 + END)
        for section_id, name in ((20, FIRST), (21, SECOND))
    )
    timer, *others = small_sections()
    return Parts(head, (timer, *configured, *others))


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
@pytest.mark.parametrize("vmdesc", [True, False], ids=["vmdesc", "no vmdesc"])
def test_a_stream_with_such_devices(size: int, vmdesc: bool) -> None:
    parts = stream()
    whole = parts.stream() if vmdesc else parts.bare()
    reading = collect(pieces_of(whole, size))
    assert reading.raw == whole
    begun = [event for event in reading.events if isinstance(event, SectionBegin)]
    assert [(one.type, one.section_id) for one in begun] == [
        (1, RAM_ID), (1, 20), (1, 21), (2, RAM_ID), (2, 20), (2, 20), (3, RAM_ID), (3, 20), (3, 21)
    ]  # fmt: skip
    assert {one.name for one in begun if one.section_id == 20} == {FIRST}
    (state,) = reading.states
    assert [section.section_id for section in state.sections] == [3, 20, 21, 4, 5, 6]
    assert any(isinstance(event, IterableData) for event in reading.events)


def test_early_sections_before_one() -> None:
    """As virtio-mem's before RAM; the section that follows may be a device's, if it was registered first."""
    parts = stream()
    mem = buffer_section(30, "0000:00:05.0/virtio-mem", b"early" * 10)
    at = parts.head.index(section_start(RAM_ID, "ram", ram_setup({"a": 0x4000}) + RAM_EOS))
    ram = section_start(RAM_ID, "ram", ram_setup({"a": 0x4000}) + RAM_EOS)
    first = section_start(20, FIRST, SETUP + END, version=1)
    rest = parts.head[at:].replace(first, b"", 1).replace(ram, b"", 1)
    head = parts.head[:at] + mem.raw + first + ram + rest
    early_first = replace(parts, head=head)
    whole = early_first.stream(early_first.vmdesc(early=(mem,)))
    reading = collect([whole])
    assert reading.raw == whole
    assert [state.early for state in reading.states] == [True, False]
    assert whole.count(EOF) > 0
