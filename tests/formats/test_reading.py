"""Streams read as a whole: events, sections field by field, registers by name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict

import pytest

import formats
from tests.streams import capture

ARM64, SMP, X86 = "kvm-trixie-a57r3", "kvm-trixie-a57r0-smp2", "tcg-q35"


@pytest.mark.parametrize("name", formats.__all__)
def test_a_public_name_is_there_and_explained(name: str) -> None:
    assert name in dir(formats)
    assert getattr(formats, name).__doc__


def test_what_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'read_guests'"):
        formats.read_guests  # noqa: B018


def test_reading_needs_neither_trio_nor_click() -> None:
    code = "import sys; from formats import read_vcpus; print(sorted({'trio', 'click', 'rich'} & {*sys.modules}))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_every_byte_is_in_one_event() -> None:
    data = capture(ARM64)
    assert b"".join(bytes(event.raw) for event in formats.read_events([data])) == data


def test_chunks_of_any_size_say_the_same() -> None:
    data = capture(ARM64)
    whole = [asdict(section) for section in formats.read_sections([data])]
    pieces = (data[start : start + 997] for start in range(0, len(data), 997))
    assert [asdict(section) for section in formats.read_sections(pieces)] == whole
    assert formats.read_vcpus(data[start : start + 1] for start in range(len(data))) == formats.read_vcpus([data])


def test_an_empty_chunk_is_not_the_end() -> None:
    data = capture(ARM64)
    assert formats.read_vcpus([data[:1000], b"", data[1000:], b""]) == formats.read_vcpus([data])


def test_sections_have_their_place_and_their_fields() -> None:
    data = capture(ARM64)
    for section in formats.read_sections([data]):
        assert data[section.offset] == 4
        assert sum(field.length for field in section.fields) == section.length


def test_vcpus_have_their_registers_by_name() -> None:
    first, second = formats.read_vcpus([capture(SMP)])
    assert (first.index, second.index) == (0, 1)
    assert first.registers["MIDR_EL1"] == second.registers["MIDR_EL1"] == 0x411FD070


def test_a_guest_of_another_architecture_has_no_arm64_vcpu() -> None:
    assert formats.read_vcpus([capture(X86)]) == []
    assert any(section.name == "cpu" for section in formats.read_sections([capture(X86)]))


def test_a_cut_stream_is_an_error_that_says_where() -> None:
    data = capture(ARM64)[:20_000]
    with pytest.raises(formats.TruncatedStreamError) as caught:
        list(formats.read_events([data]))
    assert caught.value.offset == len(data)


def test_what_is_no_stream_is_an_error() -> None:
    with pytest.raises(formats.ForeignStreamError):
        list(formats.read_events([b"QFI\xfb" * 100]))
