"""Asks a host's own KVM about many streams; runs in an emulated host.

    python3 kernel_answers.py STREAM...    prints one JSON object, by the streams' names

The policy vouches for all that can be vouched for, so that what is refused no policy lets pass.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from formats.arm.sysreg import MIDR_EL1, describe
from proxy.captures.stream_or_profile import read_source
from proxy.hosts.kvm import KvmError
from proxy.hosts.probe import probe_host
from proxy.hosts.qemu import installed_qemu
from proxy.judging.check import check
from proxy.judging.judge import Judge
from proxy.judging.kernel_trial import KernelTrial
from proxy.policy.acceptance import Acceptance
from proxy.policy.policy import Policy
from proxy.policy.rules import Rule, RuleAction, Rules
from proxy.policy.whitelist import Pairing
from proxy.settings.register_names import parse_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.judging.check import Answer
    from proxy.judging.verdict import Registers


def everything(vcpus: Iterable[Registers]) -> Policy:
    """Vouch for a guest's processor, every change of its invariant registers, and what it loses and meets by them."""
    registers = [register for vcpu in vcpus for register, _ in vcpu.items()]
    midrs = {vcpu.get(MIDR_EL1) for vcpu in vcpus}
    rules = {one: (Rule("all", RuleAction.SWAP),) for one in registers if describe(one).invariant}
    sources = tuple(parse_source("none" if midr is None else f"{midr:#x}", "all") for midr in midrs)
    return Policy((Pairing("all", sources),), Rules(rules), accept=Acceptance(None, None))


def in_short(answer: Answer) -> dict[str, object]:
    """Return what the matrix wants of an answer."""
    actions = {verdict.name: verdict.action.value for verdict in answer.verdicts}
    return {"direct": answer.direct, "goes": answer.goes, "actions": actions}


def main(names: Sequence[str]) -> dict[str, object]:
    """Ask about each stream, with a trial of its own."""
    host = replace(probe_host(measured=False), qemu=installed_qemu())
    answers: dict[str, object] = {}
    for name in names:
        vcpus = read_source(name)
        judge = Judge(everything(vcpus), host, KernelTrial())
        try:
            answers[Path(name).name] = in_short(check(judge, vcpus))
        except KvmError as error:
            answers[Path(name).name] = str(error)
        finally:
            judge.close()
    return answers


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
