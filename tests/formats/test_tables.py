"""Tables of lines: every line of theirs is a section, a row, or a comment."""

from __future__ import annotations

import re

import pytest

from formats.tables import read_rows
from tests.proxy.helpers import ROOT


@pytest.mark.parametrize("name", ["sysregs.txt", "id_fields.txt"])
def test_every_line_is_read(name: str) -> None:
    lines = [line.strip() for line in (ROOT / "formats" / "arm" / name).read_text(encoding="utf-8").splitlines()]
    told = [line for line in lines if line and not line.startswith("#")]
    sections = [line for line in told if re.fullmatch(r"\[\w+\]", line)]
    assert len(set(sections)) == len(sections)
    table = read_rows("formats.arm", name)
    assert [f"[{section}]" for section in table] == sections
    rows = [" ".join(row) for rows in table.values() for row in rows]
    assert rows == [line.partition(" #")[0].strip() for line in told if line not in sections]
