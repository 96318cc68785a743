"""A short campaign: each fault once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.campaign.faults import FAULTS
from tests.campaign.running import GOOD, Campaign

if TYPE_CHECKING:
    from pathlib import Path


async def test_one_guest_is_left_of_each(tmp_path: Path) -> None:
    campaign = Campaign(seed=19, count=len(FAULTS), only=(), directory=tmp_path)
    await campaign.run()
    assert len(campaign.rows) == len(FAULTS)
    assert {row.verdict for row in campaign.rows} <= GOOD, "\n".join(map(str, campaign.rows))
    assert all(row.outcome != "NO REPORT" for row in campaign.rows), "\n".join(map(str, campaign.rows))
