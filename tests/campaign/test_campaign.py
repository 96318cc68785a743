"""A short campaign: each fault once."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.campaign.faults import FAULTS

if TYPE_CHECKING:
    from pathlib import Path


def test_one_guest_is_left_of_each(tmp_path: Path) -> None:
    lines = tmp_path / "lines.tsv"
    command = [sys.executable, "-m", "tests.campaign", "--count", str(len(FAULTS)), "--seed", "19", "--tsv", str(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines.read_text().splitlines()) == len(FAULTS)
