"""Counts what is done while a guest stands: what is asked of KVM, and how often the device state is gone over.

It runs in an emulated host, on its own KVM.

python3 trial_counts.py BEFORE STATE MIDR    prints one line of JSON
"""

from __future__ import annotations

import fcntl
import json
import sys
from collections import Counter
from pathlib import Path

from formats.arm.register_list import RegisterList
from formats.arm.sysreg import MIDR_EL1
from formats.vmstate import footers, locators
from proxy import judged_state
from proxy.hosts.probe import probe_host
from proxy.judging.judge import Judge
from proxy.judging.kernel_trial import KernelTrial
from proxy.policy.policy import Policy
from proxy.policy.whitelist import Pairing
from proxy.rewriter.rewriter import Rewriter
from proxy.settings.register_names import parse_source

CREATE_VM = 0xAE01
SET_ONE_REG = 0x4010_AEAC
PIECE = 4096
GOES_OVER: dict[str, list[tuple[object, str]]] = {
    "located": [
        (locators, "locate_by_vmdesc"),
        (footers, "locate_by_footers"),
        (footers, "locate_before_an_end"),
    ],
    "found": [(judged_state, "open_vcpus")],
    "read": [(RegisterList, "values")],
}
"""What goes over all of the device state, or over all registers of one vCPU."""


def main(before: bytes, state: bytes, midr: str) -> dict[str, object]:
    """Judge a stream as `run` does; count from its last byte in to its first byte out, and passes from the first on."""
    counts: Counter[int | str] = Counter()
    ask = fcntl.ioctl

    def counting(descriptor: int, request: int, *arguments: object) -> object:
        counts[request] += 1
        counts["ioctls"] += 1
        return ask(descriptor, request, *arguments)  # type: ignore[call-overload]

    fcntl.ioctl = counting  # type: ignore[assignment]
    policy = Policy(whitelist=(Pairing("test", (parse_source(midr, "test"),)),))
    judge = Judge(policy, probe_host(measured=False), KernelTrial()).fresh()
    judge.open()
    rewriter = Rewriter(judge, live=True, defer=True)
    rewriter.feed(before)
    count_passes(counts)
    for at in range(0, len(state), PIECE):
        assert not rewriter.must_judge
        counts[CREATE_VM] = counts[SET_ONE_REG] = counts["ioctls"] = 0
        rewriter.feed(state[at : at + PIECE])
    assert rewriter.must_judge
    assert rewriter.judge_now()
    judge.close()
    values = {change.new for change in rewriter.report.changes if change.register == MIDR_EL1}
    return {
        "vcpus": rewriter.report.vcpus,
        "changed": len(rewriter.report.changes),
        "values": len(values),
        "vms": counts[CREATE_VM],
        "ioctls": counts["ioctls"],
        "writes": counts[SET_ONE_REG],
        "located": counts["located"],
        "found": counts["found"],
        "read": counts["read"] / rewriter.report.vcpus,
    }


def count_passes(counts: Counter[int | str]) -> None:
    """Have each of GOES_OVER count itself."""

    def counted(owner: object, name: str, what: str) -> None:
        go_over = getattr(owner, name)

        def counting(*arguments: object) -> object:
            counts[what] += 1
            return go_over(*arguments)

        setattr(owner, name, counting)

    for what, functions in GOES_OVER.items():
        for owner, name in functions:
            counted(owner, name, what)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_bytes(), sys.argv[3])))
