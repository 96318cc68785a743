"""The trial is quick: no VM is made while a guest stands, and many vCPUs cost what one does.

The vCPUs are copies of a recorded one. Those of a guest that runs differ in MPIDR_EL1 and in what they were doing; each
value that only one of them has is one more write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.switchover import MIDR, grown
from tests.kvm import trial_counts
from tests.lab.host import A57_R1P3
from tests.lab.host_proxy import run_python_in

if TYPE_CHECKING:
    from tests.lab.pool import Lab


async def test_many_vcpus_are_asked_about_like_one(lab: Lab) -> None:
    there = await lab.host(cpu=A57_R1P3, suite="trixie")
    await there.put("/tmp/trial_counts.py", Path(trial_counts.__file__).read_bytes())
    counted = []
    for vcpus in (1, 8, 64):
        switchover = grown(vcpus, vmdesc=True)
        await there.put("/tmp/counted.stream", switchover.before + switchover.state)
        completed = await run_python_in(there, "/tmp/trial_counts.py", "/tmp/counted.stream", MIDR)
        counted.append(json.loads(completed.stdout))
    assert [one.pop("vcpus") for one in counted] == [1, 8, 64]
    assert [one.pop("changed") for one in counted] == [1, 8, 64]
    assert counted[0]["vms"] == 0
    # Every register once as it came, and once as it goes on.
    assert counted[0]["ioctls"] == counted[0]["writes"] <= 2 * 258
    assert counted[1] == counted[2] == counted[0]
