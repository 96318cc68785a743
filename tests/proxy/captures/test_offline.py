"""Captured streams, read and rewritten."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1
from formats.errors import DeviceStateTooLargeError, TruncatedStreamError
from formats.stream.events import AnyEvent, FileHeader
from formats.stream.trailing import Trailing
from formats.vmstate.device_state import DeviceState
from proxy.captures.offline import count_the_rest, read_events, read_vcpus, rewrite
from proxy.errors import ProxyError, RefusedError
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import NAMES, R0, R3, capture, device_state, judge, live, observer, short, value, with_value

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SMP2 = "kvm-trixie-a57r0-smp2"


class Trickle(io.BytesIO):
    """Gives a few bytes at a time, as a pipe does."""

    def readinto(self, buffer: WriteableBuffer) -> int:
        with memoryview(buffer) as view:
            return super().readinto(view[: min(1237, len(view))])


@pytest.mark.parametrize("source", [io.BytesIO, Trickle])
def test_rewrite(source: type[io.BytesIO]) -> None:
    sink, steps = io.BytesIO(), list[int]()
    rewriter = Rewriter(judge(R0), live=False)
    rewrite(source(capture(SMP2)), sink, rewriter, steps.append)
    out = sink.getvalue()
    assert out == with_value(with_value(capture(SMP2), MIDR_EL1, R3, 0), MIDR_EL1, R3, 1)
    assert rewriter.report.bytes_in == rewriter.report.bytes_out == sum(steps) == len(out)


def test_rewrite_passes_a_recorded_return_path_command() -> None:
    sink = io.BytesIO()
    rewrite(io.BytesIO(live(short(SMP2))), sink, Rewriter(observer(), live=False), lambda _: None)
    assert sink.getvalue() == live(short(SMP2))


def test_a_truncated_stream_is_an_error_at_its_end() -> None:
    sink = io.BytesIO()
    rewriter = Rewriter(judge(R0), live=False)
    with pytest.raises(TruncatedStreamError):
        rewrite(io.BytesIO(capture(SMP2)[:-1]), sink, rewriter, lambda _: None)
    assert len(sink.getvalue()) == rewriter.report.bytes_out == device_state(capture(SMP2)).offset


def test_a_refused_stream() -> None:
    """The whole stream came in one chunk, so not even its RAM was written."""
    sink = io.BytesIO()
    with pytest.raises(RefusedError):
        rewrite(io.BytesIO(capture(SMP2)), sink, Rewriter(judge(), live=False), lambda _: None)
    assert len(sink.getvalue()) <= device_state(capture(SMP2)).offset


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", [io.BytesIO, Trickle])
def test_the_events_hold_every_byte_once(name: str, source: type[io.BytesIO]) -> None:
    out = bytearray()
    last: AnyEvent | None = None
    for event in read_events(source(capture(name))):
        assert event.offset == len(out)
        assert (last is None) == isinstance(event, FileHeader)
        out += event.raw
        last = event
    assert out == capture(name)
    assert isinstance(last, DeviceState)


def test_the_limit_holds() -> None:
    with pytest.raises(DeviceStateTooLargeError):
        list(read_events(io.BytesIO(short(SMP2)), device_state_limit=10_000))


def test_the_vcpus() -> None:
    vcpus = read_vcpus(io.BytesIO(capture(SMP2)))
    assert [registers.vcpu for registers in vcpus] == [0, 1]
    for registers in vcpus:
        assert len(registers) == 258
        assert all(register == id_ for register, id_ in zip(registers.ids, sorted(registers.ids), strict=True))
        assert dict(registers.items()) == {
            register: value(capture(SMP2), register, registers.vcpu) for register in registers.ids
        }


def test_no_stream_at_all() -> None:
    with pytest.raises(TruncatedStreamError):
        read_vcpus(io.BytesIO())


class Breaking(io.BytesIO):
    """A pipe that brings something, and then cannot be read on."""

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: WriteableBuffer) -> int:
        length = super().readinto(buffer)
        if not length:
            raise ProxyError("it cannot be unpacked")
        return length


def test_what_cannot_be_counted_after_the_stream_is_no_error() -> None:
    """The guest has arrived by then."""
    trailing = Trailing()
    count_the_rest(Breaking(bytes(3000)), trailing)
    assert (trailing.length, trailing.zeroes) == (3000, True)
