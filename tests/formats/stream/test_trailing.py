"""Streams in files that go on after them: where the stream ends, and what follows it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import FormatError, MalformedStreamError, UnlocatableSectionError, UnsupportedFeatureError
from formats.frame.event import NEED_DATA
from formats.stream.events import TrailingBytes
from formats.stream.parser import StreamParser
from formats.stream.trailing import Trailing, is_zero
from tests.streams import (
    EOF,
    Parts,
    Reading,
    Section,
    buffer_section,
    capture,
    collect,
    cut,
    footer,
    pieces_of,
    small,
    tiny,
    vmdesc_record,
)

OLDER_STATE = small().stream()[-3000:]
"""The end of a longer, older state of the same guest, which the volume had before."""


def take(stream: bytes, *cuts: int) -> Reading:
    reading = Reading(take_trailing=True)
    reading.feed_all(cut(stream, cuts))
    return reading


def trailing_of(reading: Reading) -> bytes:
    return b"".join(event.raw for event in reading.seen if event.kind is TrailingBytes)


def refused(stream: bytes) -> FormatError:
    reading = Reading(take_trailing=True)
    with pytest.raises(FormatError) as caught:
        reading.feed_all([stream])
    assert not reading.states
    return caught.value


def forging(section: Section, parts: Parts) -> tuple[Parts, int]:
    """Return a stream in whose last device stands what would end it there, and where that would be."""
    index = parts.index(section.name, section.instance)
    shorter = replace(parts, sections=(*parts.sections[:index], section))
    forged = footer(section.section_id) + EOF + vmdesc_record(shorter.vmdesc())
    hostile = buffer_section(section.section_id, section.name, section.body + forged + bytes(50), section.version)
    whole = replace(parts, sections=(*parts.sections[:index], hostile))
    end = len(shorter.bare()) + len(vmdesc_record(shorter.vmdesc()))
    return whole, end


# --- where it ends


@settings(deadline=None, max_examples=60)
@given(
    rest=st.one_of(st.just(b""), st.binary(min_size=1, max_size=300), st.integers(1, 5000).map(bytes)),
    cuts=st.lists(st.integers(0, 8000), max_size=12),
)
def test_the_stream_is_the_same_whatever_follows_and_however_it_comes(rest: bytes, cuts: list[int]) -> None:
    stream = tiny().stream()
    if rest.startswith(b"\0\0\0\1"):
        rest = b"\1" + rest
    reading = take(stream + rest, *cuts)
    alone = [event for event in reading.seen if event.kind is not TrailingBytes]
    assert alone == collect([stream]).seen
    assert trailing_of(reading) == rest
    assert reading.raw == stream + rest
    assert reading.parser.complete


@pytest.mark.parametrize("name", ["kvm-trixie-a57r0-smp2", "tcg-a57", "tcg-q35"])
@pytest.mark.parametrize("rest", [bytes(3 << 20), OLDER_STATE, b"\x06"], ids=["zeroes", "older", "a byte"])
def test_recorded_streams(name: str, rest: bytes) -> None:
    stream = capture(name)
    reading = Reading(take_trailing=True)
    reading.feed_all((stream + rest)[at : at + (1 << 20)] for at in range(0, len(stream + rest), 1 << 20))
    assert trailing_of(reading) == rest
    assert reading.states[0].sections == collect([stream]).states[0].sections


@pytest.mark.parametrize("name", ["kvm-trixie-a57r3-no-vmdesc", "tcg-a57-no-vmdesc"])
@pytest.mark.parametrize("rest", [b"", b"\0", bytes(100_000), b"rest" * 1000], ids=["none", "one", "zeroes", "other"])
def test_without_a_vmdesc_the_one_way_to_cut_it_tells_the_end(name: str, rest: bytes) -> None:
    stream = capture(name)
    reading = take(stream + rest)
    assert trailing_of(reading) == rest
    assert reading.states[0].vmdesc is None
    assert reading.states[0].sections == collect([stream]).states[0].sections


@pytest.mark.parametrize("name", ["kvm-trixie-a57r3-no-vmdesc", "tcg-a57-no-vmdesc", "tcg-a72-no-vmdesc"])
def test_a_clock_that_looks_like_a_footer_and_an_end_leaves_no_doubt(name: str) -> None:
    """The PL031's offset ends in 0x7e once in 256 starts, and zeroes follow: a footer of section 0, and an end."""
    stream = bytearray(capture(name))
    state = collect([bytes(stream)]).states[0]
    clock = next(section for section in state.sections if section.name == "pl031")
    at = state.offset + clock.body + 16
    stream[at : at + 6] = b"\x7e" + bytes(5)
    reading = take(bytes(stream))
    assert trailing_of(reading) == b""
    assert reading.states[0].sections == state.sections


def test_without_a_vmdesc_an_older_state_leaves_a_doubt() -> None:
    older = small().sections
    rest = b"".join(section.raw for section in older[2:]) + EOF
    assert "cannot be cut into sections for certain" in str(refused(small().bare() + rest))


def test_two_ends_are_one_too_many() -> None:
    """A guest that puts a vmdesc into its device cannot have less, or more, than its whole state taken for it."""
    parts, forged_end = forging(buffer_section(6, "globalstate", b"x" * 100), small())
    for rest in (b"", bytes(1000), b"rest"):
        problem = refused(parts.stream() + rest)
        assert isinstance(problem, UnlocatableSectionError)
        assert f"may end at {forged_end:#x} or at {len(parts.stream()):#x}" in str(problem)
    # On the wire, where nothing may follow, the true end is the one.
    assert len(collect([parts.stream()]).states[0].sections) == len(parts.sections)
    # The way out that the error names.
    alone = parts.stream()[:forged_end]
    assert take(alone).raw == alone


def test_a_stream_that_is_cut_is_not_taken_for_one_with_more_behind_it() -> None:
    stream = tiny().stream()
    for end in range(len(tiny().head), len(stream)):
        if end != len(tiny().bare()):  # as a source without a vmdesc sends it
            with pytest.raises(FormatError):
                take(stream[:end])


def test_a_vmdesc_that_is_wrong_is_named_and_not_passed_over() -> None:
    wrong = tiny().vmdesc()
    wrong["devices"][0]["fields"][0]["size"] += 1
    for rest in (b"", bytes(10)):
        assert "no footer stands after them" in str(refused(tiny().stream(wrong) + rest))


def test_what_is_held_is_bounded() -> None:
    stream = tiny().stream() + bytes(1 << 16)
    limit = len(tiny().stream()) - len(tiny().head)
    assert trailing_of(_limited(stream, limit)) == bytes(1 << 16)
    with pytest.raises(FormatError, match=f"the device state exceeds {limit - 1} bytes"):
        _limited(stream, limit - 1)


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_more_than_may_be_held_after_the_end_is_said_to_follow_it(size: int) -> None:
    end = len(tiny().stream())
    reading = Reading(end)
    with pytest.raises(MalformedStreamError, match="more bytes follow the end of the stream") as caught:
        reading.feed_all(pieces_of(tiny().stream() + bytes(1 << 16), size))
    assert caught.value.offset == end
    assert not reading.states


def _limited(stream: bytes, limit: int) -> Reading:
    reading = Reading(limit, take_trailing=True)
    reading.feed_all([stream])
    return reading


def test_colo_is_refused_by_name_all_the_same() -> None:
    problem = refused_after_the_end(tiny().stream() + b"\0\0\0\1")
    assert isinstance(problem, UnsupportedFeatureError)


def refused_after_the_end(stream: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        take(stream)
    return caught.value


def test_nothing_may_follow_where_it_was_not_said() -> None:
    with pytest.raises(MalformedStreamError, match="more bytes follow the end"):
        collect([tiny().stream(), b"\0"])


def test_the_cost_of_forged_vmdescs_is_linear() -> None:
    """Each of many footers, ends and JSON heads claims nearly all that follows."""
    took = []
    for size in (1 << 17, 1 << 18):
        piece = b"\x7e\0\0\0\6\0\6"
        count = size // 12
        body = b"".join(piece + (size - 12 * index - 11).to_bytes(4, "big") + b"{" for index in range(count))
        parts = small().replaced(3, buffer_section(6, "globalstate", body))
        begun = time.process_time()
        assert trailing_of(take(parts.stream() + b"rest")) == b"rest"
        took.append(time.process_time() - begun)
    assert took[1] < 8 * took[0] + 0.5


# --- stepping over it


def test_the_rest_need_not_be_fed() -> None:
    parser, stream = StreamParser(take_trailing=True), tiny().stream()
    assert parser.skippable == 0
    parser.feed(stream + b"more")
    while parser.next_event() is not NEED_DATA:
        assert not parser.skippable
    parser.feed(b"")
    events = []
    while (event := parser.next_event()) is not NEED_DATA:
        events.append(event)
    assert events[-1] == TrailingBytes(len(stream), b"more", length=4)
    assert parser.skippable >= 100 << 30
    skipped = parser.skip(100 << 30, zeroes=True)
    assert skipped == TrailingBytes(len(stream) + 4, b"", length=100 << 30, zeroes=True)
    assert parser.offset == len(stream) + 4 + (100 << 30)


@pytest.mark.parametrize(
    ("events", "zeroes", "says"),
    [
        ([TrailingBytes(0, bytes(5), length=5)], True, "5 bytes follow the end of the stream (zeroes)"),
        ([TrailingBytes(0, b"\0x", length=2)], False, "2 bytes follow the end of the stream (not zeroes)"),
        (
            [TrailingBytes(0, bytes(5), length=5), TrailingBytes(5, b"", length=1000)],
            None,
            "1005 bytes follow the end of the stream (the first 5 are zeroes, the others were not looked at)",
        ),
        ([TrailingBytes(0, bytes(5), length=5), TrailingBytes(5, b"", length=1000, zeroes=True)], True, "(zeroes)"),
        ([TrailingBytes(0, b"x", length=1), TrailingBytes(1, b"", length=1000)], False, "(not zeroes)"),
    ],
)
def test_it_is_told_what_follows(events: list[TrailingBytes], zeroes: bool | None, says: str) -> None:
    trailing = Trailing()
    for event in events:
        trailing.add(event)
    assert trailing.all_zeroes is zeroes
    assert str(trailing).endswith(says)
    assert trailing.as_dict() == {"bytes": sum(event.length for event in events), "zeroes": zeroes}


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (2 << 20) + 5])
def test_zeroes_are_zeroes(size: int) -> None:
    assert is_zero(bytes(size))
    if size:
        assert not is_zero(bytes(size - 1) + b"x")
        assert not is_zero(memoryview(b"x" + bytes(size - 1)))
