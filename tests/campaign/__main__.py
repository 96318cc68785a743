"""`make campaign`: migrations with faults, a line for each, and a summary; exit code 1 where a guest was not one.

It runs in a network namespace of its own, where black holes harm nobody, and with a small file system that can be full.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.campaign.crowd import CROWD_FAULTS, run_crowd
from tests.campaign.ending import GOOD
from tests.campaign.faults import FAULTS, PROXY_FAULTS, REFUSED
from tests.campaign.kinds import KINDS
from tests.campaign.running import Campaign, Row
from tests.campaign.stage import KVM_SUITE, Emulated, OnKvm, Stage
from tests.lab.images import host_image
from tests.lab.namespace import program
from tests.lab.pool import running_lab
from tests.lab.qemus import QEMUS, other_qemu

if TYPE_CHECKING:
    from collections.abc import Iterable

_INSIDE = "VMSTATE_PROXY_CAMPAIGN_INSIDE"
_SMALL = "16m"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--tsv", type=Path, help="where to write the lines, too")
    parser.add_argument("--qemu", choices=list(QEMUS), help="the Debian release whose QEMU to run")
    parser.add_argument("--direct", action="store_true", help="without the proxy, to see what QEMU does by itself")
    parser.add_argument("--kvm", action="store_true", help="on arm64 KVM, in two emulated hosts")
    parser.add_argument("--crowd", type=int, metavar="N", help="N migrations at once, COUNT times, a fault amid each")
    given = parser.parse_args()
    if given.kvm:
        host_image(KVM_SUITE)
    if given.qemu is not None:
        other_qemu(given.qemu, "qemu-system-aarch64", lambda line: print(line, file=sys.stderr))
    if _INSIDE not in os.environ:
        enter_namespaces()
    with tempfile.TemporaryDirectory(prefix="vmstate-campaign-") as folder:
        small = Path(folder) / "small"
        small.mkdir()
        mount = [program("mount"), "-t", "tmpfs", "-o", f"size={_SMALL}", "campaign", str(small)]
        subprocess.run(mount, check=True)
        try:
            return trio.run(run, given, Path(folder), small)
        finally:
            subprocess.run([program("umount"), "--lazy", str(small)], check=True)


def enter_namespaces() -> None:
    """Start this program anew, in a network and with mounts of its own."""
    os.environ[_INSIDE] = "1"
    user = ["--user", "--map-root-user"] if os.geteuid() else []
    script = 'ip link set lo up; exec "$@"'
    unshare = [program("unshare"), *user, "--net", "--mount", "--", "sh", "-euc", script, "sh"]
    os.execv(unshare[0], [*unshare, sys.executable, "-m", "tests.campaign", *sys.argv[1:]])


async def run(given: argparse.Namespace, directory: Path, small: Path) -> int:
    """Run the campaign, print its lines and its summary, and return the exit code."""
    lines = given.tsv.open("w") if given.tsv is not None else None

    def tell(row: Row) -> None:
        print(row, flush=True)
        if bad(row):
            print(textwrap.indent(row.log, "    "), flush=True)
        if lines is not None:
            print(row, file=lines, flush=True)

    not_here = PROXY_FAULTS if given.direct else {REFUSED} if given.kvm else set()
    faults = [fault for fault in given.only if fault not in not_here]
    with contextmanager(running_lab)() if given.kvm else nullcontext() as lab:
        stage: Stage = (
            await Emulated.open(directory, given.qemu, direct=given.direct)
            if lab is None
            else await OnKvm.open(lab, directory)
        )
        if given.crowd is not None:
            return await run_crowds(stage, given, small)
        campaign = Campaign(stage, given.seed, given.count, small, faults, given.kinds, tell, given.direct)
        await campaign.run()
    rows = campaign.rows
    print(f"\nseed {given.seed}, {len(rows)} migrations, {sum(row.reached for row in rows)} faults came")
    print(table("fault", ((row.fault, row) for row in rows)))
    print(table("kind", ((row.kind, row) for row in rows)))
    print(f"the proxy's descriptors, threads and KiB, first and last: {campaign.resources}")
    return int(any(bad(row) for row in rows))


async def run_crowds(stage: Stage, given: argparse.Namespace, small: Path) -> int:
    """Run crowds, print a line for each, and return the exit code."""
    faults = [fault for fault in given.only if fault in CROWD_FAULTS]
    good = True
    for number in range(given.count):
        row = await run_crowd(stage, given.crowd, faults[number % len(faults)], f"{given.seed}/{number}", small)
        print(row, flush=True)
        good = good and row.good
    return int(not good)


def bad(row: Row) -> bool:
    """Tell whether something came of a migration that must not."""
    return row.verdict not in GOOD or row.again.startswith("NO") or (row.outcome == "NO REPORT" and row.fault != "disk")


def table(head: str, rows: Iterable[tuple[str, Row]]) -> str:
    """Return a table of verdicts by faults, or by kinds of migrations."""
    counts: dict[str, Counter[str]] = {}
    for name, row in rows:
        counts.setdefault(name, Counter())[row.verdict if row.reached else "not reached"] += 1
    columns = sorted({verdict for one in counts.values() for verdict in one})
    lines = [f"| {head} | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    lines += [f"| {name} | " + " | ".join(str(counts[name][one]) for one in columns) + " |" for name in sorted(counts)]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
