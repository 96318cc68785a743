"""A part of docs/capabilities.md, tried: what no other live test turns on. `make capabilities` tries it all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.capabilities import TABLE, filled, in_words
from tests.lab.known_qemus import Qemus
from tests.lab.shapes import SHAPES

if TYPE_CHECKING:
    from pathlib import Path

TRIED = (
    ("bookworm", "send-section-footer=off"),
    ("bookworm", "suppress-vmdesc=on"),
    ("bookworm", "compress"),
    ("bookworm", "zero-blocks, block"),
    ("bookworm", "dirty-bitmaps"),
    ("bookworm", "x-ignore-shared"),
    ("bookworm", "background-snapshot"),
    ("trixie", "switchover-ack"),
    ("trixie", "postcopy-ram, release-ram, with --source"),
)


@pytest.fixture(scope="module")
def qemus(tmp_path_factory: pytest.TempPathFactory) -> Qemus:
    return Qemus(tmp_path_factory.mktemp("profiles"))


def cells(table: Path) -> dict[tuple[str, str], str]:
    """Return the first table: what came of a shape with the QEMU of a Debian release."""
    lines = iter(table.read_text().splitlines())
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| ")]
    suites = [title.rpartition("(")[2].strip(" )") for title in rows[0][1:]]
    return {
        (suite, row[0].strip()): cell.strip()
        for row in reversed(rows[1:])  # the second table has some of the names, too
        for suite, cell in zip(suites, row[1:], strict=True)
    }


@pytest.mark.parametrize(("suite", "name"), TRIED, ids=[f"{name}, {suite}" for suite, name in TRIED])
async def test_the_table_says_what_comes_of_it(qemus: Qemus, suite: str, name: str) -> None:
    [shape] = [shape for shape in SHAPES if shape.name == name]
    assert in_words(await filled(qemus, shape, suite, suite)) == cells(TABLE)[suite, name]
