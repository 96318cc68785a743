"""Postcopy in the rewriter: the package is judged whole, and refused before its first byte goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.arm.sysreg import MIDR_EL1, parse_register
from formats.errors import FormatError, MalformedStreamError, UnlocatableSectionError
from formats.frame.event import NEED_DATA
from formats.frame.records import CommandType
from formats.stream.events import Command, SectionBegin
from formats.stream.parser import StreamParser
from formats.vmstate.device_state import DeviceState
from formats.vmstate.vcpus import open_vcpus
from proxy.errors import RefusedError
from proxy.report.report import Outcome
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import R0, R3, cut, device_state, events, judge, live, passed, profile, short
from tests.streams import be32, be64, command, footer, section_end, section_header

SMP2 = "kvm-trixie-a57r0-smp2"
ADVISE, LISTEN, RUN = command(3, bytes(16)), command(4), command(5)
END_OF_SECTION = be64(0x10)
PING = command(2, be32(3))
LOADED = command(2, be32(0x42))
"""Answered once the devices are loaded, since QEMU 11."""
MEMORY = b"\x08\x00\x02\x00\x04\x00\x00\x00\x04 whatever memory holds"
GONE = parse_register("CNTP_CTL_EL0")


def sections_of(stream: bytes) -> bytes:
    state = device_state(stream)
    return bytes(state.held[: state.sections[-1].end])


def package(sections: bytes, ping: bytes = PING) -> bytes:
    blob = LISTEN + sections + ping + RUN
    return command(7, be32(len(blob))) + blob


def postcopied(stream: bytes, ping: bytes = PING) -> bytes:
    """Return a precopy stream as it is where the source goes over to postcopy."""
    return stream[: device_state(stream).offset] + ADVISE + package(sections_of(stream), ping) + MEMORY


STREAM = postcopied(live(short(SMP2)))
BEFORE = len(STREAM) - len(MEMORY) - len(package(sections_of(live(short(SMP2)))))


def read(stream: bytes) -> tuple[list[Command], DeviceState]:
    parser = StreamParser()
    parser.feed(stream)
    commands, states = [], []
    while (event := parser.next_event()) is not NEED_DATA:
        if isinstance(event, Command):
            commands.append(event)
        if isinstance(event, DeviceState):
            states.append(event)
    assert parser.postcopy
    [state] = states
    return commands, state


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(1, len(STREAM) - 1), max_size=8))
def test_the_registers_are_swapped_in_any_chunks(cuts: set[int]) -> None:
    rewriter = Rewriter(judge(R0), live=True)
    out = passed(rewriter, cut(STREAM, cuts))
    assert len(out) == len(STREAM)
    _, state = read(out)
    assert [registers.get(MIDR_EL1) for registers in open_vcpus(state)] == [R3, R3]
    assert rewriter.postcopy
    assert rewriter.report.postcopy
    assert rewriter.report.outcome is Outcome.REWRITTEN


@pytest.mark.parametrize("ping", [PING, b"", PING + LOADED], ids=["ping", "no ping", "two pings"])
def test_the_length_follows_registers_that_are_left_out(ping: bytes) -> None:
    stream = postcopied(live(short(SMP2)), ping)
    host = profile("kvm-trixie-a57r3")
    host = replace(host, others=frozenset(host.others or ()) - {GONE}, values=dict(host.values))
    rewriter = Rewriter(judge(R0, host=host, drop={GONE: "listed"}), live=True)
    out = passed(rewriter, [stream])
    assert len(out) == len(stream) - 2 * 2 * 8
    commands, state = read(out)
    [announced] = [found for found in commands if found.command is CommandType.PACKAGED]
    [run] = [found for found in commands if found.command is CommandType.POSTCOPY_RUN]
    assert int.from_bytes(announced.payload, "big") == run.offset + len(RUN) - announced.offset - 9
    assert (
        b"".join(found.raw for found in commands if found.command is CommandType.PING and found.offset < run.offset)
        == ping
    )
    assert all(GONE not in registers for registers in open_vcpus(state))
    assert out.endswith(MEMORY)


def test_nothing_of_a_package_that_is_refused_is_passed_on() -> None:
    rewriter = Rewriter(judge(), live=True)
    out = b"".join(bytes(raw) for raw in rewriter.feed(STREAM[:BEFORE]))
    with pytest.raises(RefusedError, match="'cpu' instance 0: MIDR_EL1"):
        rewriter.feed(STREAM[BEFORE:])
    assert out == STREAM[:BEFORE]
    assert rewriter.source_waits_in_postcopy
    assert rewriter.report.outcome is Outcome.REFUSED


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_a_refused_source_is_heard_out(size: int) -> None:
    """After the package come a PING, the rest of RAM, and the end of file."""
    [ram] = {event.section_id for event in events(live(short(SMP2))) if isinstance(event, SectionBegin)}
    rest = command(2, be32(4)) + section_end(ram, END_OF_SECTION) + b"\0"
    rewriter = Rewriter(judge(), live=True)
    with pytest.raises(RefusedError):
        rewriter.feed(STREAM[: -len(MEMORY)] + rest[:3])
    ended = rewriter.abandon()
    for at in range(3, len(rest), size):
        assert not ended
        ended = rewriter.has_ended(rest[at : at + size])
    assert ended


def fails(stream: bytes) -> FormatError:
    """Return the error that a stream is broken off with."""
    parser = StreamParser()
    parser.feed(stream)
    try:
        while parser.next_event() is not NEED_DATA:
            pass
    except FormatError as error:
        return error
    pytest.fail("it was read to its end")


BROKEN = {
    "no listen": (LISTEN, b"", MalformedStreamError),
    "no run": (RUN, b"", MalformedStreamError),
    "another command": (RUN, command(1) + RUN, MalformedStreamError),
    "three pings": (RUN, PING + PING + LOADED + RUN, MalformedStreamError),
}


@pytest.mark.parametrize(("what", "instead", "kind"), BROKEN.values(), ids=BROKEN)
def test_broken_packages(what: bytes, instead: bytes, kind: type[FormatError]) -> None:
    blob = (LISTEN + sections_of(live(short(SMP2))) + RUN).replace(what, instead)
    assert isinstance(fails(STREAM[:BEFORE] + command(7, be32(len(blob))) + blob), kind)


def test_a_package_that_can_be_cut_in_two_ways_is_refused() -> None:
    """As a guest can bring it about, which writes a footer and a section's header into a device's buffer."""
    forged = footer(77) + section_header(4, 77, "forged") + b"x" * 8
    hostile = section_header(4, 77, "device") + b"y" * 8 + forged + footer(77)
    blob = LISTEN + hostile + RUN
    error = fails(STREAM[:BEFORE] + command(7, be32(len(blob))) + blob)
    assert isinstance(error, UnlocatableSectionError)
    assert "more than one way" in str(error)


def test_what_is_known_of_the_source_is_judged_when_postcopy_is_announced() -> None:
    known = open_vcpus(device_state(live(short(SMP2))))
    rewriter = Rewriter(judge(), live=True, source=known)
    with pytest.raises(RefusedError, match="postcopy is announced, and by what is known of the source"):
        rewriter.feed(STREAM[:BEFORE])
    assert not rewriter.source_waits_in_postcopy
