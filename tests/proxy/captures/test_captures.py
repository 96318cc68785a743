"""captures/ is what its manifest says, and all of it passes as it must."""

from __future__ import annotations

import hashlib

import pytest

from formats.arm.sysreg import MIDR_EL1
from formats.errors import FormatError
from formats.frame.event import NEED_DATA
from formats.stream.events import Configuration
from formats.stream.parser import StreamParser
from formats.vmstate.device_state import DeviceState
from formats.vmstate.fields import decode_section
from formats.vmstate.vcpus import open_vcpus
from proxy.judging.judge import Judge
from proxy.policy.policy import Mode, Policy
from proxy.report.report import Outcome
from proxy.rewriter.rewriter import Rewriter
from tests.captures import CAPTURES, NOTHING, Capture, read_manifest
from tests.proxy.helpers import capture, cut, passed

ALL = read_manifest()
WHOLE = [one for one in ALL if one.whole]


def each(captures: list[Capture] | tuple[Capture, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("one", captures, ids=lambda one: one.name)


def test_every_file_has_its_line() -> None:
    assert {one.path for one in ALL} == set(CAPTURES.glob("*.xz"))
    assert len({one.name for one in ALL}) == len(ALL)


def test_there_is_one_of_each_kind() -> None:
    assert {one.accelerator for one in ALL} == {"kvm", "tcg"}
    assert {one.outcome for one in ALL} == {"saved", "completed", "refused"}
    assert {one.vmdesc for one in WHOLE} == {"yes", "no"}
    assert any("postcopy-ram" in one.capabilities for one in ALL)
    assert not all(one.arm64 for one in ALL)
    assert {one.vcpus for one in ALL} >= {"1", "2", "4"}


@each(ALL)
def test_the_sum_is_right(one: Capture) -> None:
    assert hashlib.sha256(one.path.read_bytes()).hexdigest() == one.sha256


@each(WHOLE)
def test_the_manifest_is_right(one: Capture) -> None:
    parser = StreamParser()
    vcpus = 0
    vmdesc = False
    midrs: set[int | None] = set()
    for data in (capture(one.name), b""):
        parser.feed(data)
        while (event := parser.next_event()) is not NEED_DATA:
            if isinstance(event, Configuration):
                assert event.machine == one.machine
            if isinstance(event, DeviceState):
                vmdesc = event.vmdesc is not None
                vcpus += len(open_vcpus(event))
                midrs |= {registers.get(MIDR_EL1) for registers in open_vcpus(event)}
                for section in event.sections:
                    fields = list(decode_section(event.held, section))
                    assert sum(field.length for field in fields) == section.end - section.start
    assert parser.complete
    assert vmdesc == (one.vmdesc == "yes")
    assert vcpus == (int(one.vcpus) if one.arm64 else 0)
    expected = None if one.midr == NOTHING else int(one.midr, 16)
    assert midrs == ({expected} if one.arm64 else set())
    assert (expected is not None) == (one.accelerator == "kvm")
    assert parser.return_path == ("return-path" in one.capabilities)


@each(WHOLE)
def test_an_observer_passes_it_on_as_it_is(one: Capture) -> None:
    stream = capture(one.name)
    rewriter = Rewriter(Judge(Policy(mode=Mode.OBSERVE), None), live=False)
    assert passed(rewriter, cut(stream, range(0, len(stream), 10_007))) == stream
    assert rewriter.report.outcome is Outcome.UNCHANGED


@each([one for one in ALL if "postcopy-ram" in one.capabilities])
def test_the_package_of_a_postcopy_migration_is_opened(one: Capture) -> None:
    parser = StreamParser()
    parser.feed(capture(one.name))
    states: list[DeviceState] = []
    while (event := parser.next_event()) is not NEED_DATA:
        if isinstance(event, DeviceState):
            states.append(event)
    [state] = states
    assert state.packaged
    assert str(len(open_vcpus(state))) == one.vcpus
    assert parser.postcopy


@each([one for one in ALL if one.outcome == "refused"])
def test_what_the_destination_refused_is_read_as_far_as_it_came(one: Capture) -> None:
    parser = StreamParser()
    states = 0
    parser.feed(capture(one.name))
    try:
        while (event := parser.next_event()) is not NEED_DATA:
            states += isinstance(event, DeviceState)
    except FormatError as error:
        pytest.fail(f"{error}")
    assert parser.complete or not states
