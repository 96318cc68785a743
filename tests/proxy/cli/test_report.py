"""`report`: what stands in report files, for people."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.proxy.cli.command_line import ALLOWED, SMP2, Result
from tests.proxy.helpers import short

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BEGINNING = {"schema_version": 2, "source": "tcp:10.0.0.3:1", "destination": "tcp:10.0.0.7:49152", "reason": None}


def line(outcome: str, began: datetime, **more: object) -> str:
    times = {"started": began.isoformat(), "ended": (began + timedelta(seconds=2.5)).isoformat()}
    return json.dumps({**BEGINNING, "outcome": outcome, **times, "changes": [], **more}) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "migrations.jsonl"
    now = datetime.now(UTC)
    guest = {"name": "web1", "uuid": "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d"}
    path.write_text(
        line("rewritten", now - timedelta(days=3), guest=guest, changes=[{"register": "MIDR_EL1"}])
        + line("refused", now - timedelta(hours=1), reason="offset 0x10: not listed")
        + line("failed", now, reason="the source broke the connection")
        + '{"schema_version": 1, "outcome": "unchanged", "reason": null, "changes": []}\n'
    )
    return path


def test_a_line_for_each_migration(run: Callable[..., Result], file: Path) -> None:
    result = run("report", file)
    assert result.code == 0
    rows = result.out.decode().splitlines()
    assert len(rows) == 4
    assert rows[0].endswith("2.5 s  tcp:10.0.0.3:1 -> tcp:10.0.0.7:49152  web1  MIDR_EL1")
    assert rows[1].endswith("-  -  offset 0x10: not listed")
    assert rows[3].split() == ["-", "unchanged", "-", "-", "->", "-", "-", "-"]


@pytest.mark.parametrize(
    ("options", "outcomes"),
    [
        (["--refused"], ["refused"]),
        (["--refused", "--failed"], ["refused", "failed"]),
        (["--since", "2h"], ["refused", "failed"]),
        (["--since", "30min", "--refused"], []),
        (["--since", "2001-01-01"], ["rewritten", "refused", "failed"]),
        (["--guest", "web1"], ["rewritten"]),
        (["--guest", "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d"], ["rewritten"]),
        (["--guest", "web2"], []),
    ],
    ids=" ".join,
)
def test_filters(run: Callable[..., Result], file: Path, options: list[str], outcomes: list[str]) -> None:
    result = run("report", file, "--json", *options)
    assert [json.loads(row)["outcome"] for row in result.out.splitlines()] == outcomes
    assert ("no such migrations" in result.err) == (not outcomes)


def test_what_rewrite_wrote_is_read(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(short(SMP2))
    assert run("rewrite", tmp_path / "in", tmp_path / "out", *ALLOWED, "--report", tmp_path / "reports").code == 0
    (row,) = run("report", tmp_path / "reports").out.decode().splitlines()
    assert "rewritten" in row
    assert str(tmp_path / "out") in row
    assert run("report", "-", stdin=(tmp_path / "reports").read_bytes()).out.decode().splitlines() == [row]


@pytest.mark.parametrize("bad", ["[]", "{}", '{"schema_version": 2}', "nonsense", '{"schema_version": 2, "outcome'])
def test_a_line_that_is_no_report_is_named(run: Callable[..., Result], file: Path, bad: str) -> None:
    file.write_text(file.read_text() + bad + "\n")
    result = run("report", file)
    assert result.code == 1
    assert f"{file}:5: this line is no report of a migration" in result.error()


def test_bad_usage(run: Callable[..., Result], file: Path) -> None:
    assert run("report").code == 2
    assert "write how long ago" in run("report", file, "--since", "yesterday").err
    missing = run("report", file.with_name("missing"))
    assert (missing.code, "missing: No such file" in missing.err) == (1, True)
