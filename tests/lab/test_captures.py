"""The recorder of captures/, on this machine's QEMU alone."""

from __future__ import annotations

import lzma
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.captures import CAPTURES, MANIFEST, Capture, read_manifest
from tests.lab import captures

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LINES = {line.name: line for line in read_manifest()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the recorder another folder, with the manifest in it and one of the streams."""
    for path in (MANIFEST, CAPTURES / "tcg-a72.xz"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(captures, "CAPTURES", tmp_path)
    monkeypatch.setattr(captures, "MANIFEST", tmp_path / "MANIFEST.tsv")
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*names: str) -> int:
        monkeypatch.setattr("sys.argv", ["captures", *names])
        return captures.main()

    return run


def lines_of(folder: Path) -> dict[str, Capture]:
    _, *rows = (folder / "MANIFEST.tsv").read_text().splitlines()
    return {line.name: line for line in (Capture(*row.split("\t")) for row in rows)}


def test_all_recipes_were_recorded() -> None:
    assert [recipe.name for recipe in captures.RECIPES] == list(LINES)


def test_those_that_were_named_are_recorded_and_the_others_kept(run: Callable[..., int], folder: Path) -> None:
    kept = (folder / "tcg-a72.xz").read_bytes()
    assert run("tcg-a57", "tcg-a57-live") == 0
    assert {path.name for path in folder.iterdir()} == {"MANIFEST.tsv", "tcg-a57.xz", "tcg-a57-live.xz", "tcg-a72.xz"}
    assert (folder / "tcg-a72.xz").read_bytes() == kept
    assert lzma.decompress((folder / "tcg-a57.xz").read_bytes()).startswith(b"QEVM")
    lines = lines_of(folder)
    assert list(lines) == list(LINES)
    for name, line in lines.items():
        if name in ("tcg-a57", "tcg-a57-live"):
            assert line.sha256 != LINES[name].sha256
            assert line.command == LINES[name].command
        else:
            assert line == LINES[name]


def test_a_failure_leaves_all_as_it_was(
    run: Callable[..., int], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = captures.Recipe("tcg-a72", captures.saved, "cortex-a72", machine="no-such-machine")
    monkeypatch.setattr(captures, "RECIPES", [broken])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run() == 1
    assert "captures: saved: QEMU exited with 1: " in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_what_cannot_be_written_is_an_error_in_a_line(
    run: Callable[..., int], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(captures, "CAPTURES", folder / "nowhere")
    assert run("tcg-a57") == 1
    assert capsys.readouterr().out.endswith("nowhere/tcg-a57.xz: No such file or directory\n")
    assert list(lines_of(folder).values()) == list(LINES.values())


def test_an_unknown_name_is_an_error(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("tcg-a57", "tcg-a58")
    assert caught.value.code == 2
    assert "there is no recipe for tcg-a58; there are: kvm-" in capsys.readouterr().err
