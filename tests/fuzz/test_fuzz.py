"""The corpus, and half a minute of fuzzing; `make fuzz` goes on for longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fuzz.plain_reader import read_plainly
from tests.fuzz.running import CORPUS, TooSlow, bounded, fuzz, run_one
from tests.fuzz.targets import TARGETS, Target
from tests.streams import capture, collect, small

if TYPE_CHECKING:
    from pathlib import Path

KEPT = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_kept(path: Path) -> None:
    (target,) = (one for one in TARGETS if one.name == path.parent.name.replace("-", " "))
    for size in (1 << 20, 4096, 61, 7):
        problem = run_one(target, path.read_bytes(), size)
        assert problem is None, problem


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_takes_its_seeds(target: Target) -> None:
    for seed in target.seeds():
        problem = run_one(target, seed, 4096)
        assert problem is None, problem


@pytest.mark.parametrize("name", ["kvm-trixie-a57r0-smp2", "kvm-bookworm-n1", "tcg-a57"])
def test_the_plain_reader_agrees_on_recorded_streams(name: str) -> None:
    stream = capture(name)
    plain = read_plainly(stream)
    (state,) = collect([stream]).states
    assert plain.sections == [
        (one.name, one.instance_id, state.offset + one.start, state.offset + one.end) for one in state.sections
    ]
    assert plain.registers


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is one: a plain reader that cuts otherwise is contradicted."""
    from tests.fuzz import targets

    def moved(data: bytes) -> object:
        plain = read_plainly(data)
        name, instance, start, end = plain.sections[1]
        plain.sections[1] = name, instance, start, end + 1
        return plain

    monkeypatch.setattr(targets, "read_plainly", moved)
    (parser,) = (one for one in TARGETS if one.name == "parser")
    assert "AssertionError" in (run_one(parser, small().stream(), 4096) or "")


def test_what_takes_too_long_is_found() -> None:
    def for_ever() -> None:
        while True:
            pass

    with pytest.raises(TooSlow), bounded(1):
        for_ever()


def test_half_a_minute(tmp_path: Path) -> None:
    tally = fuzz(seed=19, seconds=30, keep=tmp_path)
    assert not tally.failures, tally
    assert min(tally.runs[target.name] for target in TARGETS) > 20
