"""The report: its JSON and its line."""

from __future__ import annotations

import json
import re

import pytest

from formats.arm.sysreg import MIDR_EL1, parse_register
from proxy.errors import ExitCode
from proxy.judging.verdict import Action, Verdict
from proxy.report.report import Cause, Outcome, Report
from tests.proxy.helpers import R0, R3, REVIDR_EL1


def swap(vcpu: int = 0, register: int = MIDR_EL1) -> Verdict:
    return Verdict(vcpu, register, Action.SWAP, R0, R3, "--allow-midr 0x411fd070")


def test_a_new_report_has_failed() -> None:
    """Whatever ends a migration without saying so, it did not succeed."""
    report = Report(mode="repair")
    assert report.outcome is Outcome.FAILED
    assert report.exit_code is ExitCode.FAILED
    assert report.reason


def test_the_json() -> None:
    report = Report("repair", Outcome.REWRITTEN, None, ExitCode.OK, 10, 11, "virt-7.2", 1, [swap()], [], cause=None)
    found = json.loads(report.as_json())
    assert re.fullmatch("[0-9a-f]{16}", found.pop("id"))
    assert found == {
        "schema_version": 2,
        "started": None,
        "ended": None,
        "source": None,
        "destination": None,
        "source_tls": None,
        "destination_tls": None,
        "guest": {"name": None, "uuid": None},
        "outcome": "rewritten",
        "reason": None,
        "cause": None,
        "refused_registers": [],
        "mode": "repair",
        "policy": None,
        "profile": None,
        "kvm": False,
        "machine": "virt-7.2",
        "vcpus": 1,
        "vcpu_features": [],
        "start": None,
        "channels": 0,
        "channel_bytes": 0,
        "postcopy": False,
        "recoveries": 0,
        "bytes_in": 10,
        "bytes_out": 11,
        "seconds": {"ram": None, "held": None, "trial": None, "last_in_to_first_out": None},
        "changes": [
            {
                "vcpu": 0,
                "action": "swap",
                "register": "MIDR_EL1",
                "id": "0x603000000013c000",
                "from": "0x411fd070",
                "to": "0x411fd073",
                "rule": "--allow-midr 0x411fd070",
                "why": "",
                "fields": [{"name": "Revision", "from": 0, "to": 3}],
            }
        ],
        "would_change": [],
        "lost_features": [],
        "unguarded_errata": [],
        "not_looked_at": [],
        "trailing": None,
    }
    assert "\n" not in report.as_json()


def test_it_says_when_and_between_whom() -> None:
    report = Report("repair")
    report.begin("tcp:10.0.0.3:40000", "tcp:10.0.0.7:49152")
    report.end()
    found = report.as_dict()
    assert (found["source"], found["destination"]) == ("tcp:10.0.0.3:40000", "tcp:10.0.0.7:49152")
    for key in ("started", "ended"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found[key])
    assert found["started"] <= found["ended"]
    assert report.id != Report("repair").id


def test_a_value_that_is_not_there_is_null() -> None:
    report = Report("observe", would_change=[Verdict(0, MIDR_EL1, Action.SWAP, None, None, "")])
    (change,) = report.as_dict()["would_change"]
    assert (change["from"], change["to"]) == (None, None)


@pytest.mark.parametrize("exit_code", [ExitCode.OK, ExitCode.FAILED])
def test_an_outer_failure_overrules_success(exit_code: ExitCode) -> None:
    report = Report("repair", Outcome.REWRITTEN, None, exit_code, changes=[swap()])
    report.failed("the destination gave up", Cause.DESTINATION)
    assert (report.outcome, report.exit_code, report.reason) == (
        Outcome.FAILED,
        ExitCode.FAILED,
        "the destination gave up",
    )


@pytest.mark.parametrize(
    ("outcome", "exit_code"), [(Outcome.REFUSED, ExitCode.REFUSED), (Outcome.FAILED, ExitCode.MALFORMED)]
)
def test_a_reason_found_in_the_stream_stands(outcome: Outcome, exit_code: ExitCode) -> None:
    report = Report("repair", outcome, "the stream ends early", exit_code)
    report.failed("broken pipe", Cause.SOURCE)
    assert (report.outcome, report.exit_code, report.reason) == (outcome, exit_code, "the stream ends early")


def test_the_summary_counts_registers_and_vcpus() -> None:
    report = Report("repair", Outcome.REWRITTEN, None, ExitCode.OK, 10, 11)
    report.changes = [swap(0), swap(1), swap(1, REVIDR_EL1)]
    assert report.summary() == "rewritten: MIDR_EL1, REVIDR_EL1 of 2 vCPUs swapped (10 bytes in, 11 out)"
    report.changes = []
    report.would_change = [swap()]
    report.outcome, report.reason = Outcome.UNCHANGED, "would be refused: why"
    assert report.summary() == (
        "unchanged; MIDR_EL1 of 1 vCPU would be swapped: would be refused: why (10 bytes in, 11 out)"
    )


def test_what_the_guest_loses_and_meets_is_said() -> None:
    dfr0 = parse_register("ID_AA64DFR0_EL1")
    lower = Verdict(0, dfr0, Action.SWAP, 0x8, 0x6, "listed")
    older = Verdict(0, MIDR_EL1, Action.SWAP, R3, R0, "--allow-midr")
    report = Report("repair", Outcome.REWRITTEN, None, ExitCode.OK, changes=[older, lower, lower._replace(vcpu=1)])
    assert report.as_dict()["lost_features"] == ["ID_AA64DFR0_EL1.DebugVer 8 -> 6"]
    assert report.as_dict()["unguarded_errata"] == ["Arm 832075"]
    assert "the guest loses ID_AA64DFR0_EL1.DebugVer 8 -> 6; the guest meets Arm 832075" in report.summary()
