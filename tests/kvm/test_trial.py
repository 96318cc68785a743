"""The trial is quick: while a guest stands, no VM is made, no own value of the host is tried, and vCPUs share answers.

The vCPUs are copies of a recorded one. Those of a guest that runs differ in MPIDR_EL1 and in what they were doing; each
value that only one of them has is one more write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kvm.helpers import count_trial
from tests.lab.host import A57_R1P3

if TYPE_CHECKING:
    from tests.lab.pool import Lab


async def test_many_vcpus_are_asked_about_like_one(lab: Lab) -> None:
    there = await lab.host(cpu=A57_R1P3, suite="trixie")
    counted = [await count_trial(there, vcpus) for vcpus in (1, 8, 64)]
    assert [one.pop("vcpus") for one in counted] == [1, 8, 64]
    assert [one.pop("changed") for one in counted] == [1, 8, 64]
    assert counted[0]["vms"] == 0
    # What is not the host's own, as it came: MIDR_EL1, counters, and what no profile knows.
    assert counted[0]["ioctls"] == counted[0]["writes"] <= 16
    # However the device state comes, it is gone over when it is whole; each vCPU's registers are read to be tried, and
    # to be compared with the host's.
    assert (counted[0]["located"], counted[0]["found"], counted[0]["read"]) == (1, 1, 2)
    assert counted[1] == counted[2] == counted[0]
