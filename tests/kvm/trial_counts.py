"""Counts what the trial asks of KVM while a guest stands; runs in an emulated host, on its own KVM.

python3 trial_counts.py STREAM MIDR    prints one line of JSON
"""

from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path

from formats.arm.sysreg import MIDR_EL1
from proxy.hosts.probe import probe_host
from proxy.judging.judge import Judge
from proxy.judging.kernel_trial import KernelTrial
from proxy.policy.policy import Policy
from proxy.policy.whitelist import Pairing
from proxy.rewriter.rewriter import Rewriter
from proxy.settings.register_names import parse_source

CREATE_VM = 0xAE01
SET_ONE_REG = 0x4010_AEAC


def main(stream: bytes, midr: str) -> dict[str, object]:
    """Judge a stream as `run` does; count from its last byte in to its first byte out."""
    counts: dict[int, int] = {}
    ask = fcntl.ioctl

    def counting(descriptor: int, request: int, *arguments: object) -> object:
        counts[request] = counts.get(request, 0) + 1
        return ask(descriptor, request, *arguments)  # type: ignore[call-overload]

    fcntl.ioctl = counting  # type: ignore[assignment]
    policy = Policy(whitelist=(Pairing("test", (parse_source(midr, "test"),)),))
    judge = Judge(policy, probe_host(measured=False), KernelTrial()).fresh()
    judge.open()
    rewriter = Rewriter(judge, live=False, defer=True)
    rewriter.feed(stream)
    assert rewriter.must_judge
    counts.clear()
    assert rewriter.judge_now()
    judge.close()
    values = {change.new for change in rewriter.report.changes if change.register == MIDR_EL1}
    return {
        "vcpus": rewriter.report.vcpus,
        "changed": len(rewriter.report.changes),
        "values": len(values),
        "vms": counts.get(CREATE_VM, 0),
        "ioctls": sum(counts.values()),
        "writes": counts.get(SET_ONE_REG, 0),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).read_bytes(), sys.argv[2])))
