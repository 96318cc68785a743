"""The JSON Schema of reports, that every report which a test writes has to fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fastjsonschema

import proxy.report

SCHEMA = json.loads((Path(proxy.report.__file__).parent / "report.schema.json").read_text())
check_report = fastjsonschema.compile(SCHEMA)


def checked_report(line: str) -> dict[str, Any]:
    """Return a report, once it has been held against the schema."""
    report: dict[str, Any] = json.loads(line)
    check_report(report)
    return report
