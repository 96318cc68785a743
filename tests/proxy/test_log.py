"""The log's three formats."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from proxy.log import LOG, LogFormat, about, set_up_log

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    handlers, propagate, level = LOG.handlers[:], LOG.propagate, LOG.level
    yield
    LOG.handlers[:], LOG.propagate = handlers, propagate
    LOG.setLevel(level)


def said(capsys: pytest.CaptureFixture[str], form: LogFormat, level: str = "info") -> list[str]:
    set_up_log(level, form)
    LOG.debug("nobody asked")
    LOG.info("listening")
    about(LOG, "00ff").warning("refused")
    LOG.error("broken")
    return capsys.readouterr().err.splitlines()


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, LogFormat.TEXT) == [
        "vmstate-proxy: listening",
        "vmstate-proxy: migration 00ff: refused",
        "vmstate-proxy: broken",
    ]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, _ = map(json.loads, said(capsys, LogFormat.JSON))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {"level": "info", "message": "listening"}
    del second["time"]
    assert second == {"level": "warning", "migration": "00ff", "message": "refused"}


def test_priorities_for_the_journal(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, LogFormat.JOURNAL) == ["<6>listening", "<4>migration 00ff: refused", "<3>broken"]


@pytest.mark.parametrize(("level", "lines"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(capsys: pytest.CaptureFixture[str], level: str, lines: int) -> None:
    assert len(said(capsys, LogFormat.TEXT, level)) == lines
