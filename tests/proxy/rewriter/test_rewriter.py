"""The rewriter: what goes on, when, and what the report says."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.arm.sysreg import MIDR_EL1, parse_register
from formats.errors import (
    DeviceStateTooLargeError,
    ForeignStreamError,
    FormatError,
    TruncatedStreamError,
    UnknownCpuVersionError,
    UnlocatableSectionError,
)
from formats.vmstate.vcpus import open_vcpus
from proxy.captures.offline import rewrite
from proxy.errors import ExitCode, RefusedError
from proxy.hosts.kvm import KvmError
from proxy.judging.verdict import Action
from proxy.policy.policy import Mode
from proxy.report.report import Outcome
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import (
    NAMES,
    NEWER,
    NEWER_DROPPED,
    NEWER_SWAPPED,
    OLDER,
    PSCI_VERSION,
    R0,
    R3,
    REVIDR_EL1,
    capture,
    cut,
    device_state,
    differences,
    downgrade,
    downgraded,
    feed,
    judge,
    live,
    observer,
    passed,
    profile,
    short,
    value,
    value_at,
    with_value,
    without,
    without_vmdesc,
)

if TYPE_CHECKING:
    from proxy.judging.judge import Judge
from proxy.judging.trial import Trial

SMP2 = "kvm-trixie-a57r0-smp2"


def cuts_of(stream: bytes) -> st.SearchStrategy[list[int]]:
    """Places to cut a stream at: anywhere, and many about the places where something begins or ends."""
    state = device_state(stream)
    edges = [8, 61, state.offset, len(stream)]
    edges += [state.offset + section.body_end for section in state.sections]
    near = st.tuples(st.sampled_from(edges), st.integers(-24, 24)).map(lambda pair: max(0, sum(pair)))
    return st.lists(st.integers(0, len(stream)) | near, max_size=60)


def feed_all(rewriter: Rewriter, stream: bytes, out: bytearray) -> None:
    """Feed a stream in pieces of 1000 bytes, and note what may go on before an error is raised."""
    for piece in cut(stream, range(0, len(stream), 1000)):
        out += feed(rewriter, piece)


# --- byte identity


@pytest.mark.parametrize("flavour", ["offline", "live"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_observing_passes_any_stream_on_as_it_is_in_any_chunks(data: st.DataObject, flavour: str) -> None:
    name = data.draw(st.sampled_from(NAMES))
    stream = capture(name) if flavour == "offline" else live(capture(name))
    rewriter = Rewriter(observer(), live=flavour == "live")
    out = passed(rewriter, cut(stream, data.draw(cuts_of(stream))))
    assert out == stream
    assert rewriter.complete
    assert (rewriter.report.outcome, rewriter.report.exit_code) == (Outcome.UNCHANGED, ExitCode.OK)
    assert rewriter.report.bytes_in == len(stream)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_the_chunks_do_not_change_the_repair(data: st.DataObject) -> None:
    stream = live(capture(SMP2))
    rewriter = Rewriter(judge(R0), live=True)
    out = passed(rewriter, cut(stream, data.draw(cuts_of(stream))))
    assert out == with_value(with_value(stream, MIDR_EL1, R3, 0), MIDR_EL1, R3, 1)


@pytest.mark.parametrize("name", NAMES)
def test_observing_byte_by_byte(name: str) -> None:
    stream = live(short(name))
    assert passed(Rewriter(observer(), live=True), cut(stream, range(len(stream)))) == stream


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_that_fits_passes_a_repair_unchanged(name: str) -> None:
    rewriter = Rewriter(judge(host=profile(name)), live=False)
    assert passed(rewriter, [capture(name)]) == capture(name)
    assert rewriter.report.outcome is Outcome.UNCHANGED
    assert rewriter.report.reason is None
    assert rewriter.report.changes == []


# --- judge first, release after


def test_nothing_of_the_device_state_goes_on_before_all_is_judged() -> None:
    stream = live(short(SMP2))
    start = device_state(stream).offset
    rewriter = Rewriter(judge(R0), live=True)
    out = b""
    for piece in cut(stream, range(len(stream))):
        assert len(out) <= start
        out += feed(rewriter, piece)
    assert len(out) == len(stream)


def test_ram_is_not_held() -> None:
    stream = live(capture(SMP2))
    start = device_state(stream).offset
    rewriter = Rewriter(judge(R0), live=True)
    out = b""
    for end in range(70_000, start, 70_000):
        out += feed(rewriter, stream[end - 70_000 : end])
        assert out == stream[: len(out)]
        assert end - len(out) <= 5  # of a section's header or footer that is cut
    assert len(out) > start - 75_000


@pytest.mark.parametrize("vcpu", [0, 1])
def test_of_a_refused_state_nothing_goes_on(vcpu: int) -> None:
    """One vCPU that may not come is enough, the last one, too."""
    stream = with_value(live(short(SMP2)), MIDR_EL1, 0x411FD080, vcpu)
    start = device_state(stream).offset
    rewriter = Rewriter(judge(R0), live=True)
    out = bytearray()
    with pytest.raises(RefusedError, match=r"0x411fd080.*--allow-midr 0x411fd080") as caught:
        feed_all(rewriter, stream, out)
    assert out == stream[: len(out)]
    assert len(out) <= start
    report = rewriter.report
    assert (report.outcome, report.exit_code) == (Outcome.REFUSED, ExitCode.REFUSED)
    assert report.reason == str(caught.value)
    assert f"section 'cpu' instance {vcpu}" in report.reason
    assert report.changes == []


@pytest.mark.parametrize("cause", ["processor", "return path"])
def test_after_a_refusal_nothing_ever_goes_on(cause: str) -> None:
    stream = live(short(SMP2)) if cause == "processor" else short(SMP2)
    rewriter = Rewriter(judge(), live=True)
    with pytest.raises(RefusedError):
        passed(rewriter, [stream])
    assert not rewriter.complete
    with pytest.raises(RefusedError):
        rewriter.feed(b"")
    with pytest.raises(RefusedError):
        rewriter.end()


def test_the_refusal_says_where_the_section_begins() -> None:
    stream = with_value(short(SMP2), MIDR_EL1, 0x411FD080, 1)
    with pytest.raises(RefusedError) as caught:
        passed(Rewriter(judge(R0), live=False), [stream])
    offset = int(str(caught.value).split(",")[0].removeprefix("offset "), 16)
    assert stream[offset] == 4
    assert stream[offset + 5 : offset + 13] == b"\x03cpu\0\0\0\1"


def test_a_refusal_names_the_other_registers_too() -> None:
    stream = with_value(with_value(short(SMP2), MIDR_EL1, 0x411FD080), REVIDR_EL1, 7)
    with pytest.raises(RefusedError, match=r"MIDR_EL1: .*refused, too: REVIDR_EL1"):
        passed(Rewriter(judge(R0), live=False), [stream])


# --- minimal repair


def test_every_vcpu_is_changed_and_nothing_else() -> None:
    stream = capture(SMP2)
    rewriter = Rewriter(judge(R0), live=False)
    out = passed(rewriter, [stream])
    assert differences(stream, out) == [value_at(stream, MIDR_EL1, 0) + 7, value_at(stream, MIDR_EL1, 1) + 7]
    report = rewriter.report
    assert report.outcome is Outcome.REWRITTEN
    assert report.exit_code is ExitCode.OK
    assert report.reason is None
    assert (report.vcpus, report.machine, report.mode) == (2, "virt-7.2", "repair")
    assert [(change.vcpu, change.register, change.old, change.new) for change in report.changes] == [
        (0, MIDR_EL1, R0, R3),
        (1, MIDR_EL1, R0, R3),
    ]


def test_all_eight_bytes_of_a_value_change() -> None:
    stream = with_value(short(SMP2), REVIDR_EL1, 0x0102030405060708)
    out = passed(Rewriter(judge(R0, swap={REVIDR_EL1: "listed", MIDR_EL1: "listed"}), live=False), [stream])
    at = value_at(stream, REVIDR_EL1)
    expected = [*range(at, at + 8), value_at(stream, MIDR_EL1) + 7, value_at(stream, MIDR_EL1, 1) + 7]
    assert differences(stream, out) == sorted(expected)
    assert value(out, REVIDR_EL1) == profile("kvm-trixie-a57r3").values[REVIDR_EL1]


def test_blind_changes_what_the_policy_does_not_list_but_not_the_firmware() -> None:
    stream = with_value(with_value(short(SMP2), REVIDR_EL1, 5), PSCI_VERSION, 0x10000)
    out = passed(Rewriter(judge(R0, mode=Mode.BLIND, swap={}), live=False), [stream])
    assert value(out, REVIDR_EL1) == 0
    assert [value(out, MIDR_EL1, vcpu) for vcpu in (0, 1)] == [R3, R3]
    assert value(out, PSCI_VERSION) == 0x10000


def test_observing_says_what_would_be_changed_and_refused() -> None:
    rewriter = Rewriter(judge(R0, mode=Mode.OBSERVE), live=False)
    assert passed(rewriter, [short(SMP2)]) == short(SMP2)
    assert rewriter.report.changes == []
    assert [change.vcpu for change in rewriter.report.would_change] == [0, 1]
    assert rewriter.report.reason is None

    rewriter = Rewriter(observer(), live=False)
    assert passed(rewriter, [short(SMP2)]) == short(SMP2)
    assert rewriter.report.reason is not None
    assert rewriter.report.reason.startswith("would be refused: ")
    assert "0x411fd070" in rewriter.report.reason
    assert rewriter.report.exit_code is ExitCode.OK


# --- the return path


def test_a_live_stream_without_a_return_path_is_refused_before_any_section() -> None:
    stream = capture(SMP2)
    rewriter = Rewriter(judge(R0), live=True)
    out = feed(rewriter, stream[:61])
    assert stream[:61].startswith(out)
    with pytest.raises(RefusedError, match=r"offset 0x3d: .*return-path.*--allow-no-return-path"):
        feed(rewriter, stream[61:100])
    assert rewriter.report.outcome is Outcome.REFUSED
    assert rewriter.report.exit_code is ExitCode.REFUSED


def test_the_refusal_for_want_of_a_return_path_lets_no_section_go_on() -> None:
    rewriter = Rewriter(judge(R0), live=True)
    with pytest.raises(RefusedError, match="return-path"):
        rewriter.feed(capture(SMP2))


def test_a_stream_without_a_return_path_may_be_allowed() -> None:
    rewriter = Rewriter(judge(R0), live=True, allow_no_return_path=True)
    assert len(passed(rewriter, [capture(SMP2)])) == len(capture(SMP2))
    assert rewriter.report.outcome is Outcome.REWRITTEN
    assert not rewriter.return_path


def test_a_return_path_is_noted() -> None:
    rewriter = Rewriter(judge(R0), live=True)
    passed(rewriter, [live(short(SMP2))])
    assert rewriter.return_path


def test_observing_forgives_a_missing_return_path_and_says_so() -> None:
    rewriter = Rewriter(judge(R0, mode=Mode.OBSERVE), live=True)
    assert passed(rewriter, [short(SMP2)]) == short(SMP2)
    assert rewriter.report.reason is not None
    assert "return-path" in rewriter.report.reason


# --- broken streams


BROKEN = {
    "empty": b"",
    "foreign": b"SSH-2.0-OpenSSH_9.2\r\n" * 50,
    "half a magic": b"QEV",
    "version 2": b"QEVM\0\0\0\x02" + bytes(100),
    "unknown record": short(SMP2)[:61] + b"\x55" + short(SMP2)[61:],
    "truncated in RAM": capture(SMP2)[:100_000],
    "truncated in the devices": short(SMP2)[:5000],
    "truncated in the vmdesc": short(SMP2)[:-1],
    "bytes after the end": short(SMP2) + b"more",
    "footer of another section": short(SMP2).replace(b"\x7e\0\0\0\x01", b"\x7e\0\0\0\x02", 1),
    "device of another name": short(SMP2).replace(b"\x05pl011", b"\x05pl012", 1),
}


@pytest.mark.parametrize("step", [1 << 20, 777, 1])
@pytest.mark.parametrize("what", BROKEN)
def test_a_live_observer_passes_everything_on(what: str, step: int) -> None:
    stream = BROKEN[what]
    rewriter = Rewriter(observer(), live=True)
    assert passed(rewriter, cut(stream, range(0, len(stream), step))) == stream
    assert rewriter.complete
    assert rewriter.report.reason is not None


def with_cpu_version(stream: bytes, version: int) -> bytes:
    """Give the `cpu` sections another version, in their headers and in the vmdesc, which keeps its length."""
    at = stream.index(b'"vmsd_name": "cpu", "version": 22')
    stream = stream[:at] + stream[at:].replace(
        b'"vmsd_name": "cpu", "version": 22', f'"vmsd_name": "cpu", "version": {version}'.encode()
    )
    for vcpu in (0, 1):
        header = b"\x03cpu" + struct.pack(">I", vcpu)
        stream = stream.replace(header + struct.pack(">I", 22), header + struct.pack(">I", version))
    return stream


def test_an_unknown_cpu_version_is_refused() -> None:
    stream = with_cpu_version(live(short(SMP2)), 23)
    start = device_state(stream).offset
    rewriter = Rewriter(judge(R0), live=True)
    out = bytearray()
    with pytest.raises(UnknownCpuVersionError, match="version 23"):
        feed_all(rewriter, stream, out)
    assert len(out) <= start
    assert rewriter.report.outcome is Outcome.REFUSED
    assert rewriter.report.exit_code is ExitCode.REFUSED


def test_a_live_observer_passes_an_unknown_cpu_version_on() -> None:
    stream = with_cpu_version(live(short(SMP2)), 23)
    rewriter = Rewriter(observer(), live=True)
    assert passed(rewriter, cut(stream, range(0, len(stream), 1000))) == stream
    assert rewriter.report.outcome is Outcome.UNCHANGED


def test_a_live_observer_passes_a_broken_register_list_on() -> None:
    """Ids out of order: the section is located, by its vmdesc, but cannot be read."""
    stream = live(short(SMP2))
    at = value_at(stream, MIDR_EL1, 1) - 8 * 258
    stream = stream[:at] + bytes(8) + stream[at + 8 :]
    rewriter = Rewriter(observer(), live=True)
    assert passed(rewriter, [stream]) == stream


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("is_live", [False, True])
def test_a_repair_refuses_broken_streams(what: str, is_live: bool) -> None:
    stream = BROKEN[what]
    rewriter = Rewriter(judge(R0), live=is_live, allow_no_return_path=True)
    with pytest.raises(FormatError) as caught:
        passed(rewriter, cut(stream, range(0, len(stream), 777)))
    assert rewriter.report.reason == str(caught.value)
    assert rewriter.report.outcome in (Outcome.FAILED, Outcome.REFUSED)
    assert rewriter.report.exit_code in (ExitCode.MALFORMED, ExitCode.REFUSED)
    if what != "bytes after the end":
        assert not rewriter.complete


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (BROKEN["empty"], TruncatedStreamError),
        (BROKEN["foreign"], ForeignStreamError),
        (BROKEN["truncated in the devices"], TruncatedStreamError),
    ],
    ids=["empty", "foreign", "truncated"],
)
def test_a_malformed_stream_is_reported_as_failed(stream: bytes, error: type[FormatError]) -> None:
    rewriter = Rewriter(judge(R0), live=False)
    with pytest.raises(error):
        passed(rewriter, [stream] if stream else [])
    assert (rewriter.report.outcome, rewriter.report.exit_code) == (Outcome.FAILED, ExitCode.MALFORMED)


def test_too_much_device_state_is_refused() -> None:
    rewriter = Rewriter(judge(R0), live=False, device_state_limit=20_000)
    with pytest.raises(DeviceStateTooLargeError, match="--device-state-limit"):
        passed(rewriter, cut(short(SMP2), range(0, 60_000, 1000)))
    assert rewriter.report.exit_code is ExitCode.REFUSED


def test_a_report_before_the_end_says_that_the_end_is_missing() -> None:
    rewriter = Rewriter(judge(R0), live=True)
    feed(rewriter, live(short(SMP2))[:-1])
    assert rewriter.report.outcome is Outcome.FAILED
    assert rewriter.report.exit_code is ExitCode.FAILED
    assert not rewriter.complete


# --- no vmdesc


def test_a_suppressed_vmdesc_is_waited_for_until_it_is_overdue() -> None:
    stream = without_vmdesc(live(short(SMP2)))
    start = device_state(live(short(SMP2))).offset
    rewriter = Rewriter(judge(R0), live=True)
    out = feed(rewriter, stream)
    assert len(out) == start
    assert (rewriter.awaiting_vmdesc, rewriter.complete) == (True, False)
    out += b"".join(bytes(raw) for raw in rewriter.vmdesc_overdue())
    assert differences(stream, out) == [value_at(stream, MIDR_EL1, 0) + 7, value_at(stream, MIDR_EL1, 1) + 7]
    assert (rewriter.awaiting_vmdesc, rewriter.complete) == (False, True)
    assert rewriter.report.outcome is Outcome.REWRITTEN
    assert rewriter.end() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_suppressed_vmdesc_needs_no_waiting_when_the_source_ends(name: str) -> None:
    stream = without_vmdesc(short(name))
    rewriter = Rewriter(observer(), live=False)
    assert passed(rewriter, [stream]) == stream
    assert rewriter.complete


def test_a_vmdesc_may_come_late() -> None:
    whole = live(short(SMP2))
    stream = without_vmdesc(whole)
    rewriter = Rewriter(judge(R0), live=True)
    out = feed(rewriter, stream) + b"".join(bytes(raw) for raw in rewriter.vmdesc_overdue())
    out += passed(rewriter, cut(whole[len(stream) :], range(0, 20_000, 999)))
    assert out == passed(Rewriter(judge(R0), live=True), [whole])
    assert rewriter.report.outcome is Outcome.REWRITTEN


def test_without_a_vmdesc_the_judge_is_as_strict() -> None:
    stream = without_vmdesc(live(short(SMP2)))
    rewriter = Rewriter(judge(), live=True)
    feed(rewriter, stream)
    with pytest.raises(RefusedError, match="0x411fd070"):
        rewriter.vmdesc_overdue()
    assert rewriter.report.outcome is Outcome.REFUSED


def test_a_pause_in_mid_stream_is_not_taken_for_a_missing_vmdesc() -> None:
    """Bytes of a device may look like the end; an impatient clock then still gets nothing released."""
    stream = live(short(SMP2))
    start, end = device_state(stream).offset, len(without_vmdesc(stream))
    rewriter = Rewriter(judge(R0), live=True)
    looked_like_it = 0
    for piece in cut(stream[: end - 1], range(end)):
        feed(rewriter, piece)
        if rewriter.awaiting_vmdesc:
            looked_like_it += 1
            assert rewriter.vmdesc_overdue() == []
    assert looked_like_it
    assert feed(rewriter, stream[end - 1 : end]) == b""
    assert rewriter.awaiting_vmdesc
    assert feed(rewriter, stream[end:]) == passed(Rewriter(judge(R0), live=True), [stream])[-len(stream) + start :]


# --- registers that are left out

A57R3 = profile("kvm-trixie-a57r3")
CNTP_CTL_EL0 = parse_register("CNTP_CTL_EL0")
LACKING = [parse_register(name) for name in ("ACTLR_EL1", "PMSELR_EL0", "PIR_EL1", "CNTPCT_EL0", "CCSIDR_EL1[0]")]


def without_some() -> Judge:
    """Return a judge of a move to the r3 host, had that some registers less, which the policy lets go."""
    values = {id_: value for id_, value in A57R3.values.items() if id_ not in LACKING}
    host = replace(A57R3, values=values, others=frozenset(A57R3.others or ()) - set(LACKING))
    return judge(R0, host=host, drop=dict.fromkeys(LACKING, "listed"))


def without_some_of(stream: bytes) -> bytes:
    for vcpu in (0, 1):
        stream = without(with_value(stream, MIDR_EL1, R3, vcpu), LACKING, vcpu)
    return stream


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_the_chunks_do_not_change_what_is_left_out(data: st.DataObject) -> None:
    stream = live(capture(NEWER))
    rewriter = Rewriter(downgrade(), live=True)
    assert passed(rewriter, cut(stream, data.draw(cuts_of(stream)))) == downgraded(stream)
    assert rewriter.complete
    assert rewriter.report.outcome is Outcome.REWRITTEN


def test_what_is_left_out_byte_by_byte() -> None:
    stream = live(short(NEWER))
    assert passed(Rewriter(downgrade(), live=True), cut(stream, range(len(stream)))) == downgraded(stream)


def test_the_outcome_is_what_the_destination_would_have_sent() -> None:
    """Its own register list, and but for guest state, its own values."""
    out = passed(Rewriter(downgrade(), live=False), [capture(NEWER)])
    (registers,) = open_vcpus(device_state(out))
    (own,) = open_vcpus(device_state(capture(OLDER)))
    assert registers.ids == own.ids
    host = profile(OLDER).values
    assert {id_: registers[id_] for id_ in host} == host
    assert len(capture(NEWER)) - len(out) == 16 * len(NEWER_DROPPED)


def test_the_report_tells_what_was_left_out() -> None:
    rewriter = Rewriter(downgrade(), live=False)
    passed(rewriter, [short(NEWER)])
    report = rewriter.report
    dropped = [change for change in report.changes if change.action is Action.DROP]
    assert [change.name for change in dropped] == NEWER_DROPPED
    assert [change.name for change in report.changes if change.action is Action.SWAP] == NEWER_SWAPPED
    assert len(report.changes) == len(NEWER_DROPPED) + len(NEWER_SWAPPED)
    assert {change.new for change in dropped} == {None}
    assert (report.outcome, report.exit_code, report.reason, report.would_change) == (
        Outcome.REWRITTEN,
        ExitCode.OK,
        None,
        [],
    )
    found = report.as_dict()["changes"]
    assert {(change["action"], change["to"]) for change in found if change["register"] in NEWER_DROPPED} == {
        ("drop", None)
    }
    assert "17 registers of 1 vCPU left out" in report.summary()


def test_every_vcpu_loses_them() -> None:
    stream = live(short(SMP2))
    rewriter = Rewriter(without_some(), live=True)
    assert passed(rewriter, cut(stream, range(0, len(stream), 333))) == without_some_of(stream)
    assert [(change.vcpu, change.register) for change in rewriter.report.changes] == [
        (vcpu, register) for vcpu in (0, 1) for register in sorted([*LACKING, MIDR_EL1])
    ]


@pytest.mark.parametrize("vcpu", [0, 1])
def test_a_vcpu_may_lose_others_than_the_next(vcpu: int) -> None:
    """One has lost some, or all of them, before."""
    for gone in (LACKING[1:3], LACKING):
        stream = without(live(short(SMP2)), gone, vcpu)
        assert passed(Rewriter(without_some(), live=True), [stream]) == without_some_of(live(short(SMP2)))


@pytest.mark.parametrize("vcpu", [0, 1])
def test_one_vcpu_that_misses_them_keeps_all_from_going(vcpu: int) -> None:
    host = replace(A57R3, others=frozenset(A57R3.others or ()) - {CNTP_CTL_EL0})
    stream = with_value(live(short(SMP2)), CNTP_CTL_EL0, 1, vcpu)
    rewriter = Rewriter(judge(R0, host=host), live=True)
    out = bytearray()
    with pytest.raises(RefusedError, match=rf"'cpu' instance {vcpu}: CNTP_CTL_EL0: .*--allow-drop CNTP_CTL_EL0"):
        feed_all(rewriter, stream, out)
    assert stream.startswith(out)
    assert len(out) <= device_state(stream).offset
    assert rewriter.report.changes == []
    rewriter = Rewriter(judge(R0, host=host), live=True)
    assert len(passed(rewriter, [live(short(SMP2))])) == len(short(SMP2)) + 5 - 2 * 16


def test_what_was_rewritten_passes_again_unchanged() -> None:
    for stream, judge_ in ((live(short(NEWER)), downgrade()), (live(short(SMP2)), without_some())):
        once = passed(Rewriter(judge_, live=True), [stream])
        rewriter = Rewriter(judge_, live=True)
        assert passed(rewriter, cut(once, range(0, len(once), 1001))) == once
        assert (rewriter.report.outcome, rewriter.report.changes) == (Outcome.UNCHANGED, [])


def test_bytes_are_counted_as_they_come_and_go() -> None:
    sink = io.BytesIO()
    rewriter = Rewriter(downgrade(), live=False)
    rewrite(io.BytesIO(capture(NEWER)), sink, rewriter, lambda _: None)
    assert sink.getvalue() == downgraded(capture(NEWER))
    assert rewriter.report.bytes_in == len(capture(NEWER))
    assert rewriter.report.bytes_out == len(sink.getvalue()) == len(capture(NEWER)) - 16 * 17


@pytest.mark.parametrize("is_live", [False, True])
def test_observing_leaves_nothing_out_and_says_what_would_be(is_live: bool) -> None:
    stream = live(short(NEWER)) if is_live else short(NEWER)
    rewriter = Rewriter(downgrade(mode=Mode.OBSERVE), live=is_live)
    assert passed(rewriter, cut(stream, range(0, len(stream), 501))) == stream
    report = rewriter.report
    assert (report.outcome, report.exit_code, report.reason, report.changes) == (
        Outcome.UNCHANGED,
        ExitCode.OK,
        None,
        [],
    )
    assert [change.name for change in report.would_change if change.action is Action.DROP] == NEWER_DROPPED
    assert "17 registers of 1 vCPU would be left out" in report.summary()


# --- left out, and no vmdesc, or a late one


@pytest.mark.parametrize("is_live", [False, True])
def test_without_a_vmdesc_registers_are_left_out_all_the_same(is_live: bool) -> None:
    stream = without_vmdesc(live(short(NEWER)))
    rewriter = Rewriter(downgrade(), live=is_live)
    out = b"".join(feed(rewriter, piece) for piece in cut(stream, range(0, len(stream), 700)))
    if is_live:
        out += b"".join(bytes(raw) for raw in rewriter.vmdesc_overdue())
    out += b"".join(bytes(raw) for raw in rewriter.end())
    assert out == without_vmdesc(downgraded(live(short(NEWER))))
    assert rewriter.complete
    again = Rewriter(downgrade(), live=False)
    assert passed(again, [out]) == out


@pytest.mark.parametrize("step", [1, 999, 1 << 20])
@pytest.mark.parametrize(
    ("whole", "judge_", "expected"),
    [
        (live(short(NEWER)), downgrade(), downgraded(live(short(NEWER)))),
        (live(short(SMP2)), without_some(), without_some_of(live(short(SMP2)))),
    ],
    ids=["one vCPU", "two vCPUs"],
)
def test_a_late_vmdesc_goes_with_what_was_left_out(whole: bytes, judge_: Judge, expected: bytes, step: int) -> None:
    bare = without_vmdesc(whole)
    rewriter = Rewriter(judge_, live=True)
    out = feed(rewriter, bare) + b"".join(bytes(raw) for raw in rewriter.vmdesc_overdue())
    assert out == without_vmdesc(expected)
    rest = whole[len(bare) :]
    out += passed(rewriter, cut(rest, range(0, len(rest), step)))
    assert out == expected
    assert rewriter.complete
    assert rewriter.report.outcome is Outcome.REWRITTEN


def test_a_late_vmdesc_stays_as_it_is_where_nothing_was_left_out() -> None:
    for judge_ in (downgrade(mode=Mode.OBSERVE), judge(host=profile(NEWER))):
        whole = live(short(NEWER))
        bare = without_vmdesc(whole)
        rewriter = Rewriter(judge_, live=True)
        out = feed(rewriter, bare) + b"".join(bytes(raw) for raw in rewriter.vmdesc_overdue())
        assert out + passed(rewriter, [whole[len(bare) :]]) == whole


def other_arrays(stream: bytes) -> bytes:
    """Give the register arrays other names in the vmdesc, which fits the stream as before."""
    at = len(without_vmdesc(stream))
    return stream[:at] + stream[at:].replace(b"cpreg_vmstate_", b"cpreg_unheard_")


def test_a_late_vmdesc_that_cannot_go_with_it_ends_the_migration() -> None:
    whole = other_arrays(live(short(NEWER)))
    bare = without_vmdesc(live(short(NEWER)))
    rewriter = Rewriter(downgrade(), live=True)
    feed(rewriter, bare)
    rewriter.vmdesc_overdue()
    with pytest.raises(UnlocatableSectionError, match="register arrays"):
        feed(rewriter, whole[len(bare) :])
    assert not rewriter.complete
    assert rewriter.report.outcome is Outcome.REFUSED


def test_a_vmdesc_that_cannot_go_with_it_ends_the_migration() -> None:
    """Arrays that it has as one element: their length is right, and there is no number to change."""
    stream = live(short(NEWER))
    at = len(without_vmdesc(stream))
    text = json.loads(stream[at + 5 :])
    for device in text["devices"]:
        for field in device["fields"]:
            if field["name"] in ("cpreg_vmstate_indexes", "cpreg_vmstate_values"):
                field["size"] *= field.pop("array_len")
    changed = json.dumps(text).encode()
    stream = stream[: at + 1] + struct.pack(">I", len(changed)) + changed
    rewriter = Rewriter(downgrade(), live=True)
    out = bytearray()
    with pytest.raises(UnlocatableSectionError, match="register arrays"):
        feed_all(rewriter, stream, out)
    assert len(out) <= device_state(live(short(NEWER))).offset
    assert (rewriter.report.outcome, rewriter.report.changes) == (Outcome.REFUSED, [])
    assert not rewriter.complete
    # Who only watches needs no such number.
    assert passed(Rewriter(downgrade(mode=Mode.OBSERVE), live=True), [stream]) == stream


def test_two_vcpus_of_one_index_are_both_judged() -> None:
    """No QEMU sends that; the last one's verdicts must not hide the first one's."""
    stream = short(SMP2).replace(b"\x03cpu\0\0\0\1\0\0\0\x16", b"\x03cpu\0\0\0\0\0\0\0\x16", 1)
    stream = stream.replace(b'"name": "cpu", "instance_id": 1', b'"name": "cpu", "instance_id": 0', 1)
    at = stream.index(R0.to_bytes(8, "big"))
    rewriter = Rewriter(judge(R0), live=False)
    with pytest.raises(RefusedError, match="0x411fd080"):
        passed(rewriter, [stream[:at] + 0x411FD080.to_bytes(8, "big") + stream[at + 8 :]])
    assert rewriter.report.changes == []
    changed = passed(Rewriter(judge(R0), live=False), [stream])
    assert changed == stream.replace(R0.to_bytes(8, "big"), R3.to_bytes(8, "big"))


# --- a kernel that cannot be asked


@dataclass
class Mute(Trial):
    """A trial that answers some vCPUs, and then no more."""

    answers: int

    def refused(self, *_: object) -> dict[int, str]:
        if not self.answers:
            raise KvmError("/dev/kvm: Permission denied")
        self.answers -= 1
        return {MIDR_EL1: "this host's KVM answers EINVAL"}


def mute(answers: int, mode: Mode = Mode.REPAIR) -> Judge:
    return judge(R0, mode=mode, trial=Mute(answers))


@pytest.mark.parametrize("mode", [Mode.REPAIR, Mode.BLIND])
@pytest.mark.parametrize("answers", [0, 1, 2, 3])
def test_a_kernel_that_does_not_answer_lets_nothing_go(answers: int, mode: Mode) -> None:
    """Be it for the first vCPU, for the list of it that was repaired, or for the second."""
    stream = live(short(SMP2))
    rewriter = Rewriter(mute(answers, mode), live=True)
    out = bytearray()
    # The repaired list is refused, too; the migration ends either way.
    with pytest.raises(KvmError, match="Permission denied"):
        feed_all(rewriter, stream, out)
    assert stream.startswith(out)
    assert len(out) <= device_state(stream).offset
    assert not rewriter.complete
    report = rewriter.report
    assert (report.outcome, report.exit_code, report.changes) == (Outcome.FAILED, ExitCode.FAILED, [])
    assert report.reason == "/dev/kvm: Permission denied"
    with pytest.raises(KvmError):
        rewriter.feed(b"x")
    with pytest.raises(KvmError):
        rewriter.end()


@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_live_observer_goes_on_without_the_kernel(answers: int, step: int) -> None:
    stream = live(short(SMP2))
    rewriter = Rewriter(mute(answers, Mode.OBSERVE), live=True)
    assert passed(rewriter, cut(stream, range(0, len(stream), step))) == stream
    assert rewriter.complete
    assert rewriter.report.reason == "/dev/kvm: Permission denied"
    assert rewriter.report.changes == []


def test_a_live_observer_loses_no_late_vmdesc_either() -> None:
    stream = live(short(SMP2))
    bare = without_vmdesc(stream)
    rewriter = Rewriter(mute(0, Mode.OBSERVE), live=True)
    out = feed(rewriter, bare) + b"".join(bytes(raw) for raw in rewriter.vmdesc_overdue())
    assert out == bare
    assert out + passed(rewriter, [stream[len(bare) :]]) == stream


def test_an_offline_observer_says_that_it_cannot() -> None:
    rewriter = Rewriter(mute(0, Mode.OBSERVE), live=False)
    with pytest.raises(KvmError):
        passed(rewriter, [short(SMP2)])
    assert rewriter.report.exit_code is ExitCode.FAILED


def test_the_refusal_of_firmware_says_what_the_guest_would_lose() -> None:
    register = parse_register("KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1")
    stream = with_value(short(SMP2), register, 1, 1)
    with pytest.raises(RefusedError) as caught:
        passed(Rewriter(judge(R0), live=False), [stream])
    said = str(caught.value)
    assert "instance 1: KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1: " in said
    assert "AVAIL on the source, NOT_AVAIL on the destination" in said
    assert "never lowered" in said


def test_what_is_judged_can_be_deferred() -> None:
    """Bytes before the device state go on at once; the device state when the judge was given its time."""
    stream = capture("kvm-trixie-a57r0")
    rewriter = Rewriter(judge(R0, host=A57R3), live=False, defer=True)
    before = bytearray()
    for start in range(0, len(stream), 4096):
        before += b"".join(rewriter.feed(stream[start : start + 4096]))
    assert (rewriter.must_judge, rewriter.complete, rewriter.report.vcpus) == (True, False, 0)
    after = b"".join([*rewriter.judge_now(), *rewriter.end()])
    assert (rewriter.must_judge, rewriter.complete, rewriter.report.vcpus) == (False, True, 1)
    at_once = Rewriter(judge(R0, host=A57R3), live=False)
    assert bytes(before) + after == b"".join([*at_once.feed(stream), *at_once.end()])
    assert len(before) > len(after)
