"""What is let come, and how long it may take."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from proxy.live.session_config import DEFAULT_LIMITS
from proxy.rewriter.rewriter import Rewriter
from tests.proxy.helpers import R0, SHUT_OK, judge, observer
from tests.proxy.live.test_relay import EXPECTED, STREAM, begin, command, finish, gets, service, settled
from tests.proxy.live.test_session import DEVICES, connect, rest, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.judging.judge import Judge
    from proxy.live.session_config import Limits

SOON = replace(DEFAULT_LIMITS, begin=0.2)


@pytest.mark.parametrize("said", [b"", STREAM[:4], STREAM[:7]], ids=["nothing", "four bytes", "seven"])
async def test_what_does_not_say_in_time_what_it_is_goes(said: bytes) -> None:
    async with service(limits=SOON) as it:
        with await connect(("127.0.0.1", it.ports[0])) as stray:
            await send(stray, said)
            assert await rest(stray) == (b"", "reset")
        await finish(*await it.connect())
    assert any("within 0.2 seconds" in line for line in it.said)


@pytest.mark.parametrize("judge_", [judge(R0), observer()], ids=["repair", "observe"])
async def test_garbage_goes_nowhere(judge_: Judge) -> None:
    async with service(judge_=judge_) as it:
        with await connect(("127.0.0.1", it.ports[0])) as stray:
            await send(stray, b"GET / HTTP/1.1\r\n\r\n")
            assert await rest(stray) == (b"", "reset")
        with trio.move_on_after(0.05):
            await it.back.accept()
            pytest.fail("the destination was dialled")
        await finish(*await it.connect())
    assert len(it.reports) == 1
    assert any("is refused: offset 0x0: this is" in line for line in it.said)


async def test_no_more_migrations_than_may_be() -> None:
    async with service(limits=replace(DEFAULT_LIMITS, migrations=1)) as it:
        first = await it.connect()
        with await connect(("127.0.0.1", it.ports[0])) as second:
            await send(second, STREAM[:8])
            assert await rest(second) == (b"", "reset")
        assert any("is refused: 1 migrations are under way (--max-migrations)" in line for line in it.said)
        await finish(*first)
        await settled(it, 1)
        await finish(*await it.connect())


async def test_no_more_connections_than_may_be() -> None:
    async with service(limits=replace(DEFAULT_LIMITS, connections=2)) as it:
        first = await it.connect()
        with await connect(("127.0.0.1", it.ports[0])) as silent, await connect(("127.0.0.1", it.ports[0])) as third:
            assert await rest(third) == (b"", "reset")
            silent.shutdown(socket.SHUT_WR)
            await rest(silent)
        await finish(*first)
    assert any("is refused: there are 2 connections (--max-connections)" in line for line in it.said)


@pytest.mark.parametrize(
    ("limits", "sent", "option"),
    [
        (replace(DEFAULT_LIMITS, idle_state=0.1), DEVICES + 100, "--idle-state"),
        (replace(DEFAULT_LIMITS, idle_ram=0.1), DEVICES - 20, "--idle-ram"),
    ],
)
async def test_a_source_that_stalls_loses_its_migration(limits: Limits, sent: int, option: str) -> None:
    async with service(limits=limits) as it:
        source, destination = await it.connect(STREAM[:sent])
        assert (await rest(source))[1] == "reset"
        assert (await rest(destination))[1] == "reset"
        await settled(it, 1)
    assert it.reports[0].reason == f"the source sent nothing that could go on for 0.1 seconds ({option})"


async def test_a_verdict_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when memory is short: its thread ends before it begins."""
    over = threading.Event()
    monkeypatch.setattr(Rewriter, "must_judge", True)
    monkeypatch.setattr(Rewriter, "judge_now", lambda _self: over.wait(30))
    async with service(limits=replace(DEFAULT_LIMITS, idle_state=0.1)) as it:
        source, destination = await it.connect(STREAM)
        assert (await rest(source))[1] == "reset"
        came, how = await rest(destination)
        assert (len(came) <= DEVICES, how) == (True, "reset")
        await settled(it, 1)
    over.set()
    [report] = it.reports
    assert (report.outcome.value, report.reason) == (
        "failed",
        "the verdict took more than 0.1 seconds; is this host short of memory or processors?",
    )


async def test_a_destination_may_take_its_time_with_the_whole_of_it() -> None:
    async with service(limits=replace(DEFAULT_LIMITS, idle_ram=0.1, idle_state=0.1)) as it:
        source, destination = await it.connect(STREAM)
        await trio.sleep(1.5)
        await send(destination, SHUT_OK)
        destination.close()
        assert (await rest(source))[0].endswith(SHUT_OK)


def status(pid: int, key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def test_ten_migrations_arrive_through_a_crowd(tmp_path: Path) -> None:
    """1,000 that say nothing, 200 with garbage, and 200 that stop after four bytes."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options = ("--allow-midr", hex(R0), "--begin-within", "10")
    with (
        ExitStack() as open_,
        command(*options, "--report", str(tmp_path / "report"), life=60) as (process, port, back),
    ):
        back.listen(64)
        assert process.stderr is not None
        reader = threading.Thread(target=process.stderr.read)  # a full pipe would hold the proxy up
        reader.start()
        descriptors = Path(f"/proc/{process.pid}/fd")
        pairs = [begin(port, back, STREAM[:1000]) for _ in range(2)]
        for source, destination in pairs:
            end(source, destination)  # what is loaded with the first one is there now
        time.sleep(0.5)
        before, files = status(process.pid, "VmRSS"), len(os.listdir(descriptors))

        strays: list[socket.socket] = []
        for said in [b""] * 1000 + [b"\x99" * 64] * 200 + [STREAM[:4]] * 200:
            stray = open_.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            stray.sendall(said)
            strays.append(stray)
        pairs = [begin(port, back, STREAM[:1000]) for _ in range(10)]
        wait_for(lambda: len(os.listdir(descriptors)) >= files + 1200 + 20)
        assert status(process.pid, "VmRSS") < 100 << 10
        for source, destination in pairs:
            assert end(source, destination) == EXPECTED
        for stray in strays:
            try:
                assert stray.recv(1) == b"reset by then"
            except ConnectionResetError:
                continue
        wait_for(lambda: len(os.listdir(descriptors)) <= files)
        assert status(process.pid, "VmRSS") < before + (20 << 10)
        assert status(process.pid, "VmHWM") < 100 << 10
        back.settimeout(0.05)
        with pytest.raises(TimeoutError):
            back.accept()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        reader.join()


def end(source: socket.socket, destination: socket.socket) -> bytes:
    """Take a migration of which 1000 bytes were sent to its good end; return the stream that came."""
    source.sendall(STREAM[1000:])
    got = gets(destination, len(STREAM))
    destination.sendall(SHUT_OK)
    destination.close()
    gets(source, 100)
    source.close()
    return got


def wait_for(true: Callable[[], bool], limit: float = 30) -> None:
    until = time.monotonic() + limit
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)
