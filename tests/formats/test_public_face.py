"""The public face as other programs meet it: what an import costs, single bytes as chunks, errors that are promised."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, get_args

import pytest

import formats
from formats.stream.events import AnyEvent
from tests.streams import capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ARM64, POSTCOPY, X86 = "kvm-trixie-a57r3", "tcg-a57-postcopy", "tcg-q35"
READERS = (formats.read_events, formats.read_sections, formats.read_vcpus)


def in_bytes(data: bytes) -> Iterable[bytes]:
    return (data[start : start + 1] for start in range(len(data)))


def run(code: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code], text=True)


def test_importing_it_loads_no_module_of_its_own_nor_of_others() -> None:
    foreign = "('click', 'construct', 'msgspec', 'rich', 'trio', 'zstandard')"
    loaded = f"[name for name in sys.modules if name.startswith('formats.') or name in {foreign}]"
    assert run(f"import sys, formats; print({loaded}, dir(formats) == sorted(formats.__all__))") == "[] True\n"


def test_every_name_can_be_imported_first() -> None:
    names = ", ".join(formats.__all__)
    assert run(f"from formats import {names}; print(len(({names})))") == f"{len(formats.__all__)}\n"


def test_every_event_class_is_public() -> None:
    for kind in get_args(AnyEvent):
        assert getattr(formats, kind.__name__) is kind
        assert issubclass(kind, formats.Event)


def test_every_error_is_public() -> None:
    def kin(error: type[formats.FormatError]) -> set[str]:
        return {error.__name__}.union(*map(kin, error.__subclasses__()))

    assert kin(formats.FormatError) == {name for name in formats.__all__ if name.endswith("Error")}


@pytest.mark.parametrize("name", [ARM64, X86])
def test_sections_of_single_bytes_are_those_of_the_whole(name: str) -> None:
    data = capture(name)
    whole = [asdict(section) for section in formats.read_sections([data])]
    assert [asdict(section) for section in formats.read_sections(in_bytes(data))] == whole


def test_events_of_single_bytes_say_the_same_but_for_where_memory_is_cut() -> None:
    def said(chunks: Iterable[bytes]) -> tuple[list[tuple[str, int]], bytes]:
        events = [(type(event).__name__, event.offset, bytes(event.raw)) for event in formats.read_events(chunks)]
        kinds = [(kind, offset) for kind, offset, _ in events if kind != "IterableData"]
        return kinds, b"".join(raw for _, _, raw in events)

    data = capture(ARM64)
    assert said(in_bytes(data)) == said([data])


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("left", [0, 7, 20_000, -1])
def test_a_cut_stream_is_truncated_to_every_reader(read: Callable[[list[bytes]], Iterable[object]], left: int) -> None:
    with pytest.raises(formats.TruncatedStreamError) as caught:
        list(read([capture(ARM64)[:left]]))
    assert isinstance(caught.value, formats.MalformedStreamError)


def test_a_cut_behind_the_postcopy_package_is_not_noticed() -> None:
    *_, last = formats.read_events([capture(POSTCOPY)[:-1000]])
    assert isinstance(last, formats.PostcopyData)


@pytest.mark.parametrize("read", READERS)
def test_more_device_state_than_the_limit_is_refused(read: Callable[..., Iterable[object]]) -> None:
    with pytest.raises(formats.DeviceStateTooLargeError) as caught:
        list(read([capture(ARM64)], device_state_limit=1000))
    assert isinstance(caught.value, formats.RefusedStreamError)
    assert caught.value.advice
    assert caught.value.offset > 0


def test_a_parser_that_bytes_are_pushed_into_raises_its_error_again() -> None:
    parser = formats.StreamParser()
    parser.feed(b"no stream at all")
    for _ in range(2):
        with pytest.raises(formats.ForeignStreamError):
            parser.next_event()
