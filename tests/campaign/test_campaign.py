"""A short campaign: twenty faults."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def test_one_guest_is_left_of_each(tmp_path: Path) -> None:
    lines = tmp_path / "lines.tsv"
    command = [sys.executable, "-m", "tests.campaign", "--count", "20", "--seed", "19", "--tsv", str(lines)]
    command += ["--kinds", "plain", "held", "multifd", "postcopy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines.read_text().splitlines()) == 20
