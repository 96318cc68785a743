"""What holds for all tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from proxy.report.report import Report
from tests.report_schema import check_report

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="session")
def _reports_fit_their_schema() -> Iterator[None]:
    """Hold every report that is written in this process against the schema."""
    as_json = Report.as_json

    def checked(self: Report) -> str:
        text = as_json(self)
        check_report(json.loads(text))
        return text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Report, "as_json", checked)
        yield
