"""`make campaign`: migrations with faults, a line for each, and a summary; exit code 1 where a guest was not one."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.campaign.faults import FAULTS
from tests.campaign.running import GOOD, Row, run_campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=(), choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--tsv", type=Path, help="where to write the lines, too")
    given = parser.parse_args()
    lines: list[str] = []

    def tell(row: Row) -> None:
        lines.append(str(row))
        print(row, flush=True)

    with tempfile.TemporaryDirectory(prefix="vmstate-campaign-") as folder:
        campaign = run_campaign(given.seed, given.count, given.only, Path(folder), tell)
    if given.tsv is not None:
        given.tsv.write_text("\n".join(lines) + "\n")
    verdicts = Counter(row.verdict for row in campaign.rows)
    print(f"\nseed {given.seed}, {len(campaign.rows)} migrations: {dict(verdicts)}")
    for fault in sorted({row.fault for row in campaign.rows}):
        print(f"  {fault:16} {dict(Counter(row.verdict for row in campaign.rows if row.fault == fault))}")
    print(f"the proxy's descriptors, threads and KiB, first and last: {campaign.resources}")
    unreported = [row for row in campaign.rows if row.outcome == "NO REPORT"]
    return int(bool(set(verdicts) - GOOD or unreported))


sys.exit(main())
