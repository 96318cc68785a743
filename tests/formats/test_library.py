"""docs/library.md: its examples run, and print what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import formats

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def test_there_are_three() -> None:
    assert len(EXAMPLES) == PAGE.count("```python") == 3


@pytest.mark.parametrize(("example", "output"), EXAMPLES)
def test_an_example_prints_what_the_page_says(example: str, output: str) -> None:
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == output


def test_the_page_names_what_is_public() -> None:
    for name in re.findall(r"`(\w+Error|read_\w+|StreamParser|NEED_DATA)`", PAGE):
        assert name in formats.__all__
