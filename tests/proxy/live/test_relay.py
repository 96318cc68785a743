"""The relay: listening, migrations one after the other and at the same time, and the end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from formats.arm.sysreg import MIDR_EL1
from formats.channels.multifd import MAGIC
from formats.errors import MalformedStreamError
from proxy.errors import ExitCode
from proxy.live.channel import Channel
from proxy.live.relay import Relay
from proxy.live.session_config import DEFAULT_LIMITS, Limits, SessionConfig
from proxy.live.way import Way
from proxy.net.address import TcpAddress, parse_address
from proxy.net.allowed_sources import AllowedSources, parse_networks
from proxy.net.binding import bound
from proxy.net.route import Route
from proxy.report.report import Outcome, Report
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import (
    R0,
    R3,
    ROOT,
    SHUT_OK,
    capture,
    device_state,
    judge,
    live,
    log_into,
    short,
    value,
    value_at,
    with_value,
)
from tests.proxy.live.test_postcopy import STREAM as POSTCOPIED
from tests.proxy.live.test_session import connect, listen, receive, reset, rest, send
from tests.streams import command as stream_command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from proxy.judging.judge import Judge

Socket = trio.socket.SocketType

SMP2 = "kvm-trixie-a57r0-smp2"
STREAM = live(short(SMP2))
EXPECTED = with_value(with_value(STREAM, MIDR_EL1, R3, 0), MIDR_EL1, R3, 1)


@dataclass
class Service:
    """A relay under test, before a destination that the test plays."""

    relay: Relay
    back: Socket
    ports: list[int]
    said: list[str]
    reports: list[Report]
    exit_codes: list[ExitCode] = field(default_factory=list)
    open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    async def connect(self, opening: bytes = STREAM[:8]) -> tuple[Socket, Socket]:
        """Start a migration: return its source's and its destination's connection, with the opening on its way."""
        source = self.open.enter_context(await connect(("127.0.0.1", self.ports[0])))
        await send(source, opening)
        destination, _ = await self.back.accept()
        self.open.enter_context(destination)
        return source, destination


EVERYBODY = AllowedSources()
HELLO = MAGIC + bytes(60)


@asynccontextmanager
async def service(
    address: str = "tcp:127.0.0.1:0",
    *,
    once: bool = False,
    judge_: Judge | None = None,
    back: str = "127.0.0.1",
    sources: AllowedSources = EVERYBODY,
    limits: Limits = DEFAULT_LIMITS,
) -> AsyncIterator[Service]:
    """Run a relay; at the block's end it is told to stop, and must end."""
    said: list[str] = []
    reports: list[Report] = []
    with trio.fail_after(10), bound([parse_address(address)]) as bounds, await listen(back) as destination:
        route = Route(TcpAddress(back, destination.getsockname()[1]))
        config = SessionConfig(route, judge_ or judge(R0), sources=sources, limits=limits)
        relay = Relay(config, log_into(said), reports.append, once=once)
        it = Service(relay, destination, [int(one.name.rsplit(":", 1)[1]) for one in bounds], said, reports)

        async def run() -> None:
            it.exit_codes.append(await relay.run(*bounds))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            with it.open:
                yield it
            relay.stop()
    assert len(it.exit_codes) == 1


async def finish(source: Socket, destination: Socket, stream: bytes = STREAM, done: int = 8, taken: int = 0) -> bytes:
    """Take a migration, `done` bytes of which are sent, to its good end; return what came after the `taken` ones."""
    got = b""

    async def destine() -> None:
        nonlocal got
        got = await receive(destination, len(stream) - taken)
        await send(destination, SHUT_OK)
        destination.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(destine)
        await send(source, stream[done:])
        assert await rest(source) == (SHUT_OK, "end of file")
        source.close()
    return got


async def settled(it: Service, count: int) -> None:
    while len(it.reports) < count:
        await trio.sleep(0.001)


# --- migrations


async def test_migrations_one_after_the_other() -> None:
    async with service() as it:
        for number in range(1, 4):
            assert await finish(*await it.connect()) == EXPECTED
            await settled(it, number)
    assert [report.outcome for report in it.reports] == [Outcome.REWRITTEN] * 3
    assert it.exit_codes == [ExitCode.OK]


async def test_migrations_at_the_same_time_do_not_mix() -> None:
    one, other = STREAM, live(short("kvm-trixie-a57r0"))
    async with service() as it:
        first, second = await it.connect(), await it.connect()
        for at in range(8, 20_000, 1000):
            await send(first[0], one[at : at + 1000])
            await send(second[0], other[at : at + 1000])
        got: dict[int, bytes] = {}

        async def end(number: int, pair: tuple[Socket, Socket], stream: bytes) -> None:
            got[number] = await finish(*pair, stream, done=at + 1000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end, 2, second, other)
            nursery.start_soon(end, 1, first, one)
    assert got[1] == EXPECTED
    assert got[2] == with_value(other, MIDR_EL1, R3)
    assert sorted(report.vcpus for report in it.reports) == [1, 2]


async def test_one_migrations_trouble_is_not_the_others() -> None:
    async with service() as it:
        good, bad = await it.connect(), await it.connect()
        await send(good[0], STREAM[8:1000])
        await send(bad[0], b"GET / HTTP/1.1\r\n\r\n")
        assert (await rest(bad[1]))[1] == "reset"
        await settled(it, 1)
        assert await finish(*good, done=1000) == EXPECTED
    assert [report.outcome for report in it.reports] == [Outcome.FAILED, Outcome.REWRITTEN]
    assert it.exit_codes == [ExitCode.OK]


async def test_an_error_of_its_own_ends_one_migration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with service() as it:
        good, bad = await it.connect(), await it.connect()
        with monkeypatch.context() as wrong:
            wrong.setattr(Rewriter, "feed", _fail)
            await send(bad[0], STREAM[8:1000])
            assert await rest(bad[0]) == (b"", "reset")
            assert (await rest(bad[1]))[1] == "reset"
        assert await finish(*good) == EXPECTED
        await settled(it, 2)
    assert [report.outcome for report in it.reports] == [Outcome.FAILED, Outcome.REWRITTEN]
    assert it.reports[0].reason == "internal error, please report it: RuntimeError('wrong')"
    assert "Traceback" in capsys.readouterr().err


async def test_an_error_of_its_own_on_a_channel_does_not_end_the_service(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Channel, "run", _fail)
    async with service() as it:
        good = await it.connect()
        with await connect(("127.0.0.1", it.ports[0])) as channel:
            await send(channel, MAGIC + bytes(60))
            assert await rest(channel) == (b"", "reset")
        assert [(await rest(end))[1] for end in good] == ["reset", "reset"]
        monkeypatch.undo()
        assert await finish(*await it.connect()) == EXPECTED
        await settled(it, 2)
    assert [report.outcome for report in it.reports] == [Outcome.FAILED, Outcome.REWRITTEN]
    assert any(line.endswith("internal error, please report it: RuntimeError('wrong')") for line in it.said)
    assert "Traceback" in capsys.readouterr().err


def _fail(*_: object) -> None:
    raise RuntimeError("wrong")


async def test_the_operator_is_told() -> None:
    async with service() as it:
        await finish(*await it.connect())
        await settled(it, 1)
    begun, ended = it.said
    match = re.fullmatch(r"migration ([0-9a-f]{16}): from tcp:127\.0\.0\.1:\d+ to tcp:127\.0\.0\.1:\d+", begun)
    assert match
    assert match[1] == it.reports[0].id
    assert ended.startswith(f"migration {match[1]}: rewritten: MIDR_EL1 of 2 vCPUs swapped (")


# --- listening


async def test_ipv6_both_ways() -> None:
    async with service("tcp:[::1]:0", back="::1") as it:
        source = await connect(("::1", it.ports[0]))
        await send(source, STREAM[:8])
        destination, _ = await it.back.accept()
        assert await finish(source, destination) == EXPECTED
        await settled(it, 1)
    assert it.reports[0].outcome is Outcome.REWRITTEN


async def test_a_lack_of_file_descriptors_passes() -> None:
    """Running out of them must not end the migrations under way; the one that waits is taken later."""
    async with service() as it:
        pair = await it.connect()
        await send(pair[0], STREAM[8:1000])
        waiting = trio.socket.socket()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        probe = os.dup(0)
        os.close(probe)
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe, limits[1]))
        try:
            await waiting.connect(("127.0.0.1", it.ports[0]))
            while not any("cannot accept" in line for line in it.said):
                await trio.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await finish(*pair, done=1000)
        await send(waiting, STREAM[:8])
        destination, _ = await it.back.accept()
        assert await finish(waiting, destination) == EXPECTED
    assert [report.outcome for report in it.reports] == [Outcome.REWRITTEN] * 2


async def test_a_lack_of_memory_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it let through, no migration would be taken any more. The campaign runs out of it in earnest."""
    accept, lacks = trio.SocketListener.accept, 2

    async def accept_if_there_is_memory(listener: trio.SocketListener) -> trio.SocketStream:
        nonlocal lacks
        if lacks:
            lacks -= 1
            raise MemoryError
        return await accept(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", accept_if_there_is_memory)
    async with service() as it:
        pair = await it.connect()
        assert await finish(*pair) == EXPECTED
    assert not lacks
    assert it.reports[0].outcome is Outcome.REWRITTEN


# --- the end


async def test_stopping_lets_migrations_end_and_takes_no_more() -> None:
    async with service() as it:
        pair = await it.connect()
        await send(pair[0], STREAM[8:1000])
        it.relay.stop()
        await trio.testing.wait_all_tasks_blocked()
        with await connect(("127.0.0.1", it.ports[0])) as late:
            await send(late, STREAM[:8])
            assert await rest(late) == (b"", "reset")
        assert await finish(*pair, done=1000) == EXPECTED
        while not it.exit_codes:
            await trio.sleep(0.001)
        with pytest.raises(ConnectionRefusedError):
            await connect(("127.0.0.1", it.ports[0]))
    assert [report.outcome for report in it.reports] == [Outcome.REWRITTEN]
    assert it.exit_codes == [ExitCode.OK]


@pytest.mark.parametrize(
    ("stream", "judged", "exit_code"),
    [
        (STREAM, judge(R0), ExitCode.OK),
        (STREAM, judge(), ExitCode.REFUSED),
        (STREAM[:40_000], judge(R0), ExitCode.MALFORMED),
        (short(SMP2), judge(R0), ExitCode.REFUSED),
    ],
    ids=["rewritten", "refused", "truncated", "no return path"],
)
async def test_once_ends_with_its_migrations_exit_code(stream: bytes, judged: Judge, exit_code: ExitCode) -> None:
    async with service(once=True, judge_=judged) as it:
        source, destination = await it.connect()
        if exit_code is ExitCode.OK:
            await finish(source, destination)
        else:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                await send(source, stream[8:])
                source.shutdown(socket.SHUT_WR)
            assert (await rest(destination))[1] == "reset"
            assert (await rest(source))[1] == "reset"
        while not it.exit_codes:
            await trio.sleep(0.001)
        with pytest.raises(ConnectionRefusedError):
            await connect(("127.0.0.1", it.ports[0]))
    assert it.exit_codes == [exit_code]
    assert len(it.reports) == 1


async def test_once_is_once_when_two_come_at_once() -> None:
    async with service(once=True) as it:
        one, other = await connect(("127.0.0.1", it.ports[0])), await connect(("127.0.0.1", it.ports[0]))
        with one, other:
            await trio.sleep(0.05)
            await send(one, STREAM[:8])
            await send(other, STREAM[:8])
            await trio.sleep(0.1)
            begun = len([line for line in it.said if ": from " in line])
        while not it.exit_codes:
            await trio.sleep(0.001)
    assert begun == 1
    assert len(it.reports) == 1


async def test_who_is_in_no_allowed_network_is_reset_unheard() -> None:
    async with service(sources=parse_networks(["192.0.2.0/24"])) as it:
        with await connect(("127.0.0.1", it.ports[0])) as stray:
            assert await rest(stray) == (b"", "reset")
        assert any("is refused: it is in none of the networks" in line for line in it.said)
        assert not it.reports
    async with service(sources=parse_networks(["192.0.2.0/24", "127.0.0.0/8"])) as it:
        await finish(*await it.connect())


async def test_what_is_no_migration_does_not_use_once_up() -> None:
    """As a health check that sends a request, and a scanner."""
    async with service(once=True) as it:
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00"):
            with await connect(("127.0.0.1", it.ports[0])) as stray:
                await send(stray, said)
                assert (await rest(stray))[1] == "reset"
        assert not it.exit_codes
        await finish(*await it.connect())
        while not it.exit_codes:
            await trio.sleep(0.001)
    assert it.exit_codes == [ExitCode.OK]
    assert [report.exit_code for report in it.reports] == [ExitCode.OK]
    assert sum("not a migration stream" in line or "this is no migration stream" in line for line in it.said) == 2


async def test_once_does_not_wait_for_a_peer_that_says_nothing() -> None:
    """As a health check that holds its connection."""
    async with service(once=True) as it:
        with await connect(("127.0.0.1", it.ports[0])):
            await finish(*await it.connect())
            with trio.fail_after(1):
                while not it.exit_codes:
                    await trio.sleep(0.001)


async def test_a_peer_that_says_nothing_does_not_keep_a_relay_that_was_stopped() -> None:
    async with service() as it:
        with await connect(("127.0.0.1", it.ports[0])):
            await trio.sleep(0.05)
            it.relay.stop()
            with trio.fail_after(1):
                while not it.exit_codes:
                    await trio.sleep(0.001)


async def test_a_port_scan_is_no_migration() -> None:
    async with service(once=True) as it:
        (await connect(("127.0.0.1", it.ports[0]))).close()
        reset(await connect(("127.0.0.1", it.ports[0])))
        await trio.sleep(0.05)
        assert it.reports == []
        assert await finish(*await it.connect()) == EXPECTED
        while not it.exit_codes:
            await trio.sleep(0.001)
    assert it.exit_codes == [ExitCode.OK]
    assert len(it.reports) == 1


async def test_once_and_stopped_before_any_migration_is_no_success() -> None:
    """Exit code 0 says that the guest has moved."""
    async with service(once=True) as it:
        it.relay.stop()
    assert it.exit_codes != [ExitCode.OK]


async def test_a_report_that_cannot_be_written_does_not_end_the_other_migrations() -> None:
    async with service() as it:

        def full(_: Report) -> None:
            raise OSError(28, "No space left on device")

        it.relay._on_report = full
        good, bad = await it.connect(), await it.connect()
        await send(good[0], STREAM[8:1000])
        reset(bad[0])
        assert (await rest(bad[1]))[1] == "reset"
        await trio.sleep(0.05)
        assert await finish(*good, done=1000) == EXPECTED


# --- multifd channels that are none, or are lost to the proxy


async def begun_with_a_channel(it: Service) -> tuple[Socket, Socket, Socket, Socket]:
    source, destination = await it.connect()
    channel = it.open.enter_context(await connect(("127.0.0.1", it.ports[0])))
    await send(channel, HELLO)
    there, _ = await it.back.accept()
    it.open.enter_context(there)
    assert await receive(there, len(HELLO)) == HELLO
    return source, destination, channel, there


async def test_a_channel_too_many_does_not_end_the_migration() -> None:
    """A destination that has all its channels listens no more; so a stranger's greeting goes nowhere."""
    async with service() as it:
        source, destination, channel, there = await begun_with_a_channel(it)
        it.back.close()
        with await connect(("127.0.0.1", it.ports[0])) as stranger:
            await send(stranger, HELLO)
            assert (await rest(stranger))[1] == "reset"
        channel.shutdown(socket.SHUT_WR)
        there.shutdown(socket.SHUT_WR)
        await finish(source, destination)
    [report] = it.reports
    assert (report.outcome, report.channels) == (Outcome.REWRITTEN, 1)


async def test_who_greeted_long_before_a_migration_is_none_of_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU connects its main channel first. A destination with a preempt channel would take a stranger's for that."""
    monkeypatch.setattr("proxy.live.arrivals._OVERTAKES", 0.02)
    monkeypatch.setattr("proxy.live.arrivals._CHANNEL_WAIT", 0.5)
    async with service() as it:
        stranger = it.open.enter_context(await connect(("127.0.0.1", it.ports[0])))
        await send(stranger, HELLO)
        await trio.sleep(0.1)
        source, destination, channel, there = await begun_with_a_channel(it)
        assert await rest(stranger) == (b"", "reset")
        channel.shutdown(socket.SHUT_WR)
        there.shutdown(socket.SHUT_WR)
        await finish(source, destination)
    [report] = it.reports
    assert (report.outcome, report.channels) == (Outcome.REWRITTEN, 1)


async def test_who_was_silent_long_before_a_migration_is_not_its_preempt_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.live.arrivals._OVERTAKES", 0.02)
    async with service(judge_=judge(R0)) as it:
        it.open.enter_context(await connect(("127.0.0.1", it.ports[0])))
        await trio.sleep(0.1)
        source, destination = await it.connect()
        await send(source, POSTCOPIED[8:])
        await receive(destination, len(POSTCOPIED))
        with trio.move_on_after(0.3) as dialled:
            await it.back.accept()
        assert dialled.cancelled_caught
        with await connect(("127.0.0.1", it.ports[0])):
            channel, _ = await it.back.accept()
            with channel:
                reset(source)
                assert (await rest(destination))[1] == "reset"


@pytest.mark.parametrize("arrives", [True, False], ids=["a guest that arrived", "a guest that did not"])
async def test_a_channel_that_breaks_when_all_was_sent(monkeypatch: pytest.MonkeyPatch, arrives: bool) -> None:
    """The destination may run its guest by then: its word on the main connection counts, if one comes."""
    monkeypatch.setattr("proxy.live.side_channels._LAST_WORD", 0.2)
    async with service() as it:
        source, destination, _, there = await begun_with_a_channel(it)
        await send(source, STREAM[8:])
        assert await receive(destination, len(STREAM)) == EXPECTED
        reset(there)
        await trio.sleep(0.05)
        if arrives:
            await send(destination, SHUT_OK)
            destination.close()
        assert await rest(source) == ((SHUT_OK, "end of file") if arrives else (b"", "reset"))
        source.close()
        await settled(it, 1)
    assert it.reports[0].outcome is (Outcome.REWRITTEN if arrives else Outcome.FAILED)


@pytest.mark.parametrize("listens", [True, False], ids=["that still listens", "that listens no more"])
async def test_a_channel_for_a_migration_without_any_is_a_strangers(
    monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    """Its pages come on the main connection; a QEMU takes no channel then, and its guest may have arrived."""
    monkeypatch.setattr("proxy.live.arrivals._CHANNEL_WAIT", 0.2)
    stream = live(capture(SMP2))
    ram = device_state(stream).offset
    async with service() as it:
        source, destination = await it.connect(stream[:ram])
        assert await receive(destination, ram) == stream[:ram]
        if not listens:
            it.back.close()
        with await connect(("127.0.0.1", it.ports[0])) as stranger:
            await send(stranger, HELLO)
            assert await rest(stranger) == (b"", "reset")
        await finish(source, destination, stream, done=ram, taken=ram)
    [report] = it.reports
    assert (report.outcome, report.channels) == (Outcome.REWRITTEN, 0)


async def test_a_channel_that_the_proxy_has_no_memory_for_ends_the_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source would wait for it for ever."""

    async def no_memory(_: Way) -> None:
        raise MemoryError

    async with service() as it:
        source, destination, *_ = await begun_with_a_channel(it)
        monkeypatch.setattr(Way, "reach", no_memory)
        with await connect(("127.0.0.1", it.ports[0])) as channel:
            await send(channel, HELLO)
            assert (await rest(channel))[1] == "reset"
        assert (await rest(source))[1] == "reset"
        assert (await rest(destination))[1] == "reset"
        await settled(it, 1)
    assert it.reports[0].reason == "the destination lost a multifd channel"


# --- a preempt channel that has not come


async def test_a_destination_that_waits_for_its_preempt_channel_is_not_left_waiting() -> None:
    """QEMU 7.2 reads nothing before that has come; the guest may be refused first."""
    async with service(judge_=judge()) as it:
        source, destination = await it.connect()
        await send(source, POSTCOPIED[8:])
        channel, _ = await it.back.accept()
        with channel:
            assert await rest(channel) == (b"", "end of file")
        assert (await rest(destination))[1] == "reset"
        source.close()
        await settled(it, 1)
    assert it.reports[0].outcome is Outcome.REFUSED


RESUME = stream_command(9)
"""What a recovery begins with, where no bitmap goes before it."""


async def test_a_preempt_channel_may_speak_at_once_when_a_migration_was_recovered() -> None:
    """The destination had asked for pages before; garbage is still none."""
    page = (0x4030_0000 | 0x08).to_bytes(8, "big") + b"\x08mach-virt"[:9] + bytes(4096)
    async with service(judge_=judge(R0)) as it:
        source, destination = await it.connect()
        await send(source, POSTCOPIED[8:])
        await receive(destination, len(POSTCOPIED))
        reset(source)
        assert (await rest(destination))[1] == "reset"
        again, onward = await it.connect(RESUME)
        assert await receive(onward, len(RESUME)) == RESUME
        with await connect(("127.0.0.1", it.ports[0])) as garbage:
            await send(garbage, b"GET / HTTP/1.1\r\n\r\n")
            assert await rest(garbage) == (b"", "reset")
        with await connect(("127.0.0.1", it.ports[0])) as channel:
            await send(channel, page)
            there, _ = await it.back.accept()
            with there:
                assert await receive(there, len(page)) == page
                reset(again)
                assert (await rest(onward))[1] == "reset"


async def test_a_preempt_channel_that_ends_in_postcopy_pauses_the_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages that it would bring do not come: a guest that waits for one would wait for ever."""
    monkeypatch.setattr("proxy.live.channel._PATIENCE", 0.2)
    async with service(judge_=judge(R0)) as it:
        source, destination = await it.connect()
        await send(source, POSTCOPIED[8:])
        await receive(destination, len(POSTCOPIED))
        with await connect(("127.0.0.1", it.ports[0])) as channel:
            there, _ = await it.back.accept()
            with there:
                channel.shutdown(socket.SHUT_WR)
                assert (await rest(there))[1] == "reset"
                assert (await rest(destination))[1] == "reset"
                assert (await rest(source))[1] == "reset"


# --- the command


@contextmanager
def command(*options: str, life: float = 15) -> Iterator[tuple[subprocess.Popen[str], int, socket.socket]]:
    """Run `vmstate-proxy run`; yield it, its port, and the destination's listener."""
    with socket.create_server(("127.0.0.1", 0)) as back:
        back.settimeout(10)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "proxy", "run", "--listen", "tcp:127.0.0.1:0", "--midr", hex(R3)),
                *("--connect", f"tcp:127.0.0.1:{back.getsockname()[1]}", *options),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        watchdog = threading.Timer(life, process.kill)
        watchdog.start()
        try:
            with process:
                assert process.stderr is not None
                line = process.stderr.readline()
                match = re.search(
                    r"listening on tcp:127\.0\.0\.1:(\d+), for the destination at tcp:127\.0\.0\.1:\d+$", line
                )
                assert match, line + process.stderr.read()
                try:
                    yield process, int(match[1]), back
                finally:
                    process.kill()
        finally:
            watchdog.cancel()


def begin(port: int, back: socket.socket, stream: bytes = STREAM[:8]) -> tuple[socket.socket, socket.socket]:
    source = socket.create_connection(("127.0.0.1", port), timeout=10)
    source.sendall(stream)
    destination, _ = back.accept()
    destination.settimeout(10)
    return source, destination


def gets(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length and (more := sock.recv(1 << 20)):
        data += more
    return bytes(data)


def end_well(source: socket.socket, destination: socket.socket, done: int) -> bytes:
    """Take a migration to its good end; return the stream that came."""
    source.sendall(STREAM[done:])
    got = gets(destination, len(STREAM))
    destination.sendall(SHUT_OK)
    destination.close()
    assert gets(source, 100) == SHUT_OK
    source.close()
    return got


def takes_no_more(port: int) -> bool:
    """Tell whether a migration that comes now is reset."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as late:
        late.sendall(STREAM[:8])
        try:
            return late.recv(1) == b"impossible"
        except ConnectionResetError:
            return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals, tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    with command("--allow-midr", hex(R0), "--report", str(report)) as (process, port, back):
        assert process.stderr is not None
        pair = begin(port, back, STREAM[:1000])
        assert ": from tcp:" in process.stderr.readline()
        process.send_signal(number)
        assert f"{number.name}: no new migrations" in process.stderr.readline()
        assert takes_no_more(port)
        assert end_well(*pair, done=1000) == EXPECTED
        _, err = process.communicate()
        assert process.returncode == 0
    assert "rewritten: MIDR_EL1 of 2 vCPUs swapped" in err
    assert "Traceback" not in err
    assert json.loads(report.read_text())["outcome"] == "rewritten"


def test_a_second_signal_resets(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    with command("--allow-midr", hex(R0), "--report", str(report)) as (process, port, back):
        assert process.stderr is not None
        source, destination = begin(port, back, STREAM[:1000])
        assert ": from tcp:" in process.stderr.readline()
        process.terminate()
        assert "no new migrations" in process.stderr.readline()
        process.terminate()
        _, err = process.communicate()
        assert process.returncode == 1
        with source, pytest.raises(ConnectionResetError):
            gets(source, 1)
        with destination, pytest.raises(ConnectionResetError):
            gets(destination, len(STREAM))
    assert "SIGTERM: resetting the migrations under way" in err
    assert "Traceback" not in err
    assert json.loads(report.read_text())["reason"] == "the proxy was stopped"


def test_an_idle_service_ends_at_once() -> None:
    with command() as (process, _, _):
        process.terminate()
        process.communicate()
        assert process.returncode == 0


def test_it_takes_all_descriptors_that_it_may_have() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard - 1), hard))
    try:
        with command() as (process, _, _):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_reports_are_lines_that_are_there_at_once(tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    with command("--allow-midr", hex(R0), "--report", str(report)) as (process, port, back):
        assert end_well(*begin(port, back), done=8) == EXPECTED
        source, destination = begin(port, back, STREAM[:-1])
        source.close()
        with destination, pytest.raises(ConnectionResetError):
            gets(destination, len(STREAM))
        lines: list[str] = []
        while len(lines) < 2:
            lines = report.read_text().splitlines()
        process.terminate()
        process.communicate()
        assert process.returncode == 0
    first, second = map(json.loads, lines)
    assert (first["schema_version"], first["outcome"], first["bytes_out"]) == (2, "rewritten", len(STREAM))
    assert [change["vcpu"] for change in first["changes"]] == [0, 1]
    assert (second["outcome"], second["changes"]) == ("failed", [])
    assert "the stream ends" in second["reason"]


@pytest.mark.parametrize(("options", "code"), [(["--allow-midr", hex(R0)], 0), ([], 4)], ids=["rewritten", "refused"])
def test_once_reports_to_standard_output(options: list[str], code: int) -> None:
    with command(*options, "--once", "--report", "-") as (process, port, back):
        if code:
            source, destination = begin(port, back)
            with contextlib.suppress(ConnectionError):
                source.sendall(STREAM[8:])
            with destination, pytest.raises(ConnectionResetError):
                gets(destination, len(STREAM))
            with source, pytest.raises(ConnectionResetError):
                gets(source, 1)
        else:
            assert end_well(*begin(port, back), done=8) == EXPECTED
        out, err = process.communicate()
        assert process.returncode == code
    assert json.loads(out)["outcome"] == ("refused" if code else "rewritten")
    assert "Traceback" not in err
    if code:
        assert "--allow-midr 0x411fd070" in err
        assert len([line for line in err.splitlines() if "0x411fd070" in line]) == 1


def test_a_report_to_a_full_disk_does_not_end_the_service() -> None:
    with command("--allow-midr", hex(R0), "--report", "/dev/full") as (process, port, back):
        assert end_well(*begin(port, back), done=8) == EXPECTED
        assert end_well(*begin(port, back), done=8) == EXPECTED
        process.terminate()
        _, err = process.communicate()
    assert "Traceback" not in err
    assert err.count("cannot write the report: No space left on device") == 2


def test_the_streams_are_what_they_are_said_to_be() -> None:
    assert value(STREAM, MIDR_EL1) == R0
    assert value_at(STREAM, MIDR_EL1, 1) > value_at(STREAM, MIDR_EL1, 0)


@pytest.mark.parametrize("error", [MalformedStreamError("cut", offset=7), RuntimeError("wrong")], ids=["stream", "own"])
async def test_no_trouble_with_new_settings_ends_a_migration(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reload() -> None:
        raise error

    async with service() as it:
        monkeypatch.setattr(it.relay, "_reload", reload)
        pair = await it.connect()
        signal.raise_signal(signal.SIGHUP)
        while not any("SIGHUP" in line for line in it.said):
            await trio.sleep(0.001)
        assert await finish(*pair) == EXPECTED
        await settled(it, 1)
    assert any(line.endswith("nothing has changed") for line in it.said)
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, RuntimeError)
