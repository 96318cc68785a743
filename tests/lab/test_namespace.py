"""A host in a namespace of its own, which says why it ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.lab.namespace import Namespace

if TYPE_CHECKING:
    from pathlib import Path


def test_a_host_that_ends_early_says_why(tmp_path: Path) -> None:
    host = Namespace("sleep 1; echo no such luck; exit 3", tmp_path)
    try:
        deadline = time.monotonic() + 10
        while host.returncode is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert host.returncode == 3
        assert host.text() == "no such luck\n"
    finally:
        host.close()
