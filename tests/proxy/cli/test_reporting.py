"""Where reports go, when there is no room for one."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from proxy.cli.reporting import ReportFile
from proxy.report.report import Report

if TYPE_CHECKING:
    from pathlib import Path


class Full(io.FileIO):
    """A file on a disk on which 100 bytes are left."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        return super().write(data[:100])


def test_what_fits_of_a_report_on_a_full_disk_does_not_spoil_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reports"
    report = Report(mode="repair", policy=None, profile=None, kvm=False)
    file = ReportFile(str(path))
    file.add(report)
    with Full(path, "ab") as small, monkeypatch.context() as full:
        full.setattr(file, "_file", small)
        with pytest.raises(OSError, match="No space left on device"):
            file.add(report)
    file.add(report)
    file.close()
    assert [json.loads(line)["mode"] for line in path.read_text().splitlines()] == ["repair", "repair"]
