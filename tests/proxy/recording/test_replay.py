"""Replays over real loopback sockets, to a destination that the test plays."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import signal
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from proxy.captures.stream_files import open_stream
from proxy.errors import ExitCode
from proxy.live.session import Session
from proxy.live.session_config import SessionConfig
from proxy.net.address import TcpAddress
from proxy.net.connection import SocketConnection
from proxy.net.route import Route
from proxy.recording.replay import Replay, ReplayReport, replay
from tests.lab.proxy import vmstate_proxy
from tests.proxy.helpers import (
    PONG,
    R0,
    SHUT_FAILED,
    SHUT_OK,
    capture,
    device_state,
    judge,
    live,
    without_vmdesc,
)
from tests.proxy.live.test_session import carry, listen, nothing_comes, receive, reset, rest, send
from tests.proxy.recording.record_streams import (
    NO_RETURN_PATH,
    OPAQUE,
    PING,
    POSTCOPY_ADVISE,
    SMP2,
    STREAM,
    before_sections,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from proxy.captures.offline import Source

Socket = trio.socket.SocketType

DEVICES = device_state(STREAM).offset


class Chunked(io.RawIOBase):
    """A stream that is read in pieces of a size, as from a slow pipe."""

    def __init__(self, stream: bytes, size: int) -> None:
        self._file = io.BytesIO(stream)
        self._size = size

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        return self._file.readinto(memoryview(buffer)[: self._size])


@dataclass
class Replaying:
    """A replay under way; the destination has been dialled."""

    destination: Socket
    over: trio.Event = field(default_factory=trio.Event)
    reports: list[ReplayReport] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    async def report(self) -> ReplayReport:
        """Wait for the end."""
        await self.over.wait()
        return self.reports[0]


@asynccontextmanager
async def replaying(
    source: bytes | Source, *, rate: float | None = None, take_trailing: bool = True
) -> AsyncIterator[Replaying]:
    """Replay to a destination; when the block is left, the replay must end within 30 seconds."""
    with trio.fail_after(30), await listen() as back:
        steps: list[int] = []
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        it = Replay(file, rate=rate, take_trailing=take_trailing)
        over, reports = trio.Event(), list[ReplayReport]()

        async def run() -> None:
            await it.run(TcpAddress("127.0.0.1", back.getsockname()[1]), steps.append)
            reports.append(it.report())
            over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            destination, _ = await back.accept()
            with destination:
                yield Replaying(destination, over, reports, steps)
                await over.wait()


@pytest.fixture(autouse=True)
def they_wait_for_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Destinations here say nothing before they are told that no more comes, as no QEMU does."""
    monkeypatch.setattr("proxy.recording.replay._WORD", 0.2)


# --- the good way


async def test_it_does_not_end_before_the_destination_has_said_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """As QEMU does not: whoever carries it takes an end for a source that has given up."""
    monkeypatch.setattr("proxy.recording.replay._WORD", 30)
    async with replaying(STREAM) as it:
        assert await receive(it.destination, len(STREAM)) == STREAM
        await nothing_comes(it.destination)
        await send(it.destination, SHUT_OK)
        assert await rest(it.destination) == (b"", "end of file")
        assert (await it.report()).confirmed is True


@pytest.mark.parametrize("size", [50, 4096, 1 << 20])
async def test_a_destination_that_takes_the_guest(size: int) -> None:
    async with replaying(Chunked(STREAM, size)) as it:
        assert await rest(it.destination) == (STREAM, "end of file")
        await send(it.destination, PONG[:3])
        await trio.sleep(0.02)
        await send(it.destination, PONG[3:] + SHUT_OK)
        report = await it.report()
        assert await rest(it.destination) == (b"", "end of file")
    assert sum(it.steps) == len(STREAM)
    assert (report.exit_code, report.reason) == (ExitCode.OK, None)
    values = json.loads(report.as_json())
    assert values.pop("sections") > 10
    assert values == {
        "schema_version": 1,
        "bytes": len(STREAM),
        "complete": True,
        "return_path": True,
        "pongs": 1,
        "confirmed": True,
        "not_understood_from": None,
        "reason": None,
        "trailing": None,
    }
    assert "the destination has the guest" in report.summary()


async def test_what_a_live_destination_says_while_the_stream_comes_is_heard() -> None:
    async with replaying(STREAM, rate=len(STREAM) * 4) as it:
        for _ in range(3):
            await send(it.destination, PONG)
            await receive(it.destination, 1000)
        await rest(it.destination)
        await send(it.destination, PONG + struct.pack(">HH", 7, 0) + struct.pack(">HHI", 99, 4, 0) + SHUT_OK)
        it.destination.close()
        report = await it.report()
    assert (report.exit_code, report.pongs, report.confirmed) == (ExitCode.OK, 4, True)


async def test_nobody_is_believed_before_the_destination_has_spoken() -> None:
    async with replaying(STREAM) as it:
        await rest(it.destination)
        await trio.sleep(0.1)
        assert not it.over.is_set()
        await send(it.destination, SHUT_OK)
        assert (await it.report()).confirmed is True


async def test_without_a_return_path_nothing_is_confirmed() -> None:
    async with replaying(NO_RETURN_PATH) as it:
        assert await rest(it.destination) == (NO_RETURN_PATH, "end of file")
        assert not it.over.is_set()
        it.destination.close()
        report = await it.report()
    assert (report.exit_code, report.return_path, report.confirmed) == (ExitCode.OK, False, None)
    assert report.complete
    assert "not confirmed: the stream opened no return path" in report.summary()


async def test_a_long_stream_to_a_destination_that_reads_late() -> None:
    stream = live(capture(SMP2))
    ram_start, ram_end = DEVICES - 18 - len(PING), device_state(stream).offset - 18
    more = stream[:ram_end] + stream[ram_start:ram_end] * 12 + stream[ram_end:]
    async with replaying(more) as it:
        await trio.sleep(0.2)
        assert await rest(it.destination) == (more, "end of file")
        await send(it.destination, SHUT_OK)
        assert (await it.report()).exit_code is ExitCode.OK


async def test_a_stream_without_vmdesc() -> None:
    stream = without_vmdesc(STREAM)
    async with replaying(stream) as it:
        assert await rest(it.destination) == (stream, "end of file")
        await send(it.destination, SHUT_OK)
        report = await it.report()
    assert (report.exit_code, report.complete) == (ExitCode.OK, True)


async def test_a_guest_that_has_arrived_has_arrived() -> None:
    """A destination without vmdesc does not read it: it confirms, and closes with it unread, which is a reset."""
    async with replaying(STREAM, rate=len(STREAM) * 2) as it:
        await receive(it.destination, DEVICES)
        await send(it.destination, SHUT_OK)
        reset(it.destination)
        report = await it.report()
    assert (report.confirmed, report.exit_code) == (True, ExitCode.OK)


async def test_what_is_not_understood_is_sent_all_the_same() -> None:
    async with replaying(OPAQUE) as it:
        assert await rest(it.destination) == (OPAQUE, "end of file")
        await send(it.destination, SHUT_OK)
        report = await it.report()
    assert (report.exit_code, report.complete, report.not_understood_from) == (ExitCode.OK, True, DEVICES)
    assert f"not understood from offset {DEVICES:#x} on" in report.summary()


async def test_a_rate_is_kept() -> None:
    """Half a second's worth of bytes does not come in less; and it comes in small steps."""
    async with replaying(STREAM, rate=len(STREAM) * 2) as it:
        started = trio.current_time()
        assert (await rest(it.destination))[0] == STREAM
        assert trio.current_time() - started > 0.35
        await send(it.destination, SHUT_OK)
    assert len(it.steps) >= 10


async def test_a_tiny_rate_sends_what_is_due() -> None:
    async with replaying(STREAM, rate=0.5) as it:
        assert await receive(it.destination, 1) == STREAM[:1]
        await nothing_comes(it.destination)
        reset(it.destination)
        assert (await it.report()).exit_code is ExitCode.FAILED


async def test_through_the_proxy() -> None:
    """A replay is a source like any other."""
    with trio.fail_after(30), await listen() as front, await listen() as back:
        it = Replay(io.BytesIO(STREAM))
        address = TcpAddress("127.0.0.1", front.getsockname()[1])
        config = SessionConfig(Route(TcpAddress("127.0.0.1", back.getsockname()[1])), judge(R0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.run, address, lambda _: None)
            accepted, _ = await front.accept()
            session = Session(config, SocketConnection("source", accepted))
            nursery.start_soon(carry, session)
            destination, _ = await back.accept()
            with destination:
                await receive(destination, len(STREAM))
                await send(destination, PONG + SHUT_OK)
                assert await rest(destination) == (b"", "end of file")
    assert session.report.exit_code is ExitCode.OK
    assert it.report().confirmed is True


# --- trouble


@pytest.mark.parametrize("after", [8, 100, DEVICES, DEVICES + 20_000])
@pytest.mark.parametrize("stream", [STREAM, NO_RETURN_PATH], ids=["return path", "none"])
async def test_a_destination_that_resets_amidst_the_stream(stream: bytes, after: int) -> None:
    async with replaying(Chunked(stream, 5000), rate=len(stream) * 2) as it:
        await receive(it.destination, after)
        reset(it.destination)
        report = await it.report()
    assert report.exit_code is ExitCode.FAILED
    assert not report.confirmed
    assert not report.complete
    assert report.reason is not None
    assert "the destination broke the connection: " in report.reason
    if report.bytes:
        assert f"after {report.bytes} bytes had been sent, the last of them in " in report.reason
        assert "\n" not in report.summary()


@pytest.mark.parametrize(
    ("after", "where"),
    [(100, "section 'ram' instance 0"), (DEVICES + 20_000, "the device state")],
    ids=["ram", "devices"],
)
async def test_the_section_that_was_sent_last_is_named(after: int, where: str) -> None:
    """The stream stops there, so it is known what was sent."""

    class Stalled(Chunked):
        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            return super().readinto(buffer) or stalled.wait()

    class Wait:
        def __init__(self) -> None:
            self.read, self.write = os.pipe()

        def wait(self) -> int:
            os.read(self.read, 1)
            return 0

    stalled = Wait()
    try:
        async with replaying(Stalled(STREAM[:after], 1 << 20), take_trailing=False) as it:
            await receive(it.destination, after)
            reset(it.destination)
            report = await it.report()
    finally:
        os.write(stalled.write, b"x")
    assert report.reason is not None
    assert f"after {after} bytes had been sent, the last of them in {where}; its own log says why" in report.reason


@pytest.mark.parametrize(
    ("said", "told"), [(b"", "saying nothing"), (PONG, "saying nothing"), (SHUT_FAILED, "with error 1")]
)
async def test_a_destination_that_gives_up_early(said: bytes, told: str) -> None:
    async with replaying(STREAM, rate=len(STREAM)) as it:
        await receive(it.destination, 1000)
        await send(it.destination, said)
        it.destination.shutdown(socket.SHUT_WR)
        report = await it.report()
        assert (await rest(it.destination))[1] == "reset"
    assert report.exit_code is ExitCode.FAILED
    assert report.reason is not None
    assert report.reason.startswith(f"the destination ended {told}, after {report.bytes} bytes had been sent, ")


@pytest.mark.parametrize(
    ("said", "told"), [(b"", "saying nothing"), (PONG, "saying nothing"), (SHUT_FAILED, "with error 1")]
)
async def test_a_destination_that_does_not_take_the_guest(said: bytes, told: str) -> None:
    async with replaying(STREAM) as it:
        await rest(it.destination)
        await send(it.destination, said)
        it.destination.close()
        report = await it.report()
    assert (report.exit_code, report.complete, report.confirmed) == (ExitCode.FAILED, True, False)
    assert report.reason == (
        f"all {len(STREAM)} bytes were sent, and the destination did not take the guest: the destination ended {told}; "
        "its own log says why"
    )


@pytest.mark.parametrize("stream", [STREAM, NO_RETURN_PATH], ids=["return path", "none"])
async def test_a_destination_that_resets_at_the_end(stream: bytes) -> None:
    async with replaying(stream) as it:
        await rest(it.destination)
        reset(it.destination)
        report = await it.report()
    assert (report.exit_code, report.complete) == (ExitCode.FAILED, True)
    assert report.reason is not None
    assert "the destination broke the connection: Connection reset by peer" in report.reason
    assert f"all {len(stream)} bytes" in report.reason
    assert ("did not take the guest" in report.reason) == (stream is STREAM)


@pytest.mark.parametrize(
    ("kind", "name"), [(3, "REQ_PAGES_ID"), (4, "REQ_PAGES"), (5, "RECV_BITMAP"), (6, "RESUME_ACK")]
)
async def test_what_only_a_running_source_can_answer_is_refused(kind: int, name: str) -> None:
    stream = before_sections(STREAM, POSTCOPY_ADVISE)
    async with replaying(stream, rate=len(stream)) as it:
        await receive(it.destination, 1)
        await send(it.destination, PONG + struct.pack(">HH", kind, 12))
        report = await it.report()
        assert (await rest(it.destination))[1] == "reset"
    assert (report.exit_code, report.confirmed) == (ExitCode.REFUSED, False)
    assert report.reason is not None
    assert f"({name})" in report.reason
    assert "postcopy" in report.reason


@pytest.mark.parametrize("after", [30, DEVICES - 3, DEVICES + 1000, len(STREAM) - 1])
async def test_a_stream_that_was_cut_has_no_clean_end(after: int) -> None:
    async with replaying(STREAM[:after]) as it:
        data, how = await rest(it.destination)
        assert how == "reset"
        assert STREAM[:after].startswith(data)
        report = await it.report()
    assert (report.exit_code, report.complete, report.confirmed) == (
        ExitCode.MALFORMED,
        False,
        False if after > 100 else None,
    )
    assert report.reason is not None
    assert f"offset {after:#x}" in report.reason
    assert "the stream ends where" in report.reason


async def test_a_stream_that_cannot_be_read_on_has_no_clean_end(tmp_path: Path) -> None:
    path = tmp_path / "broken.xz"
    packed = lzma.compress(STREAM + os.urandom(3 << 20))
    path.write_bytes(packed[: len(packed) - 40])
    with open_stream(str(path)) as stream:
        async with replaying(stream) as it:
            assert (await rest(it.destination))[1] == "reset"
            report = await it.report()
    assert report.exit_code is ExitCode.FAILED
    assert report.reason is not None
    assert "broken.xz: " in report.reason


@pytest.mark.parametrize("said", [b"", b"QE", b"GET / HTTP/1.1\r\n\r\n", b"LibvirtQemudSave" + bytes(99)])
async def test_what_is_no_stream_never_reaches_the_destination(said: bytes) -> None:
    """A QEMU that waits for a migration takes one connection only."""
    with trio.fail_after(30), await listen() as back:
        it = Replay(io.BytesIO(said))
        await it.run(TcpAddress("127.0.0.1", back.getsockname()[1]), lambda _: None)
        with trio.move_on_after(0.05):
            await back.accept()
            raise AssertionError("the destination was dialled")
    report = it.report()
    assert (report.exit_code, report.bytes) == (ExitCode.MALFORMED, 0)
    assert report.reason is not None
    assert report.reason.startswith("offset 0x")


async def test_a_destination_that_cannot_be_reached() -> None:
    with await listen() as back:
        port = back.getsockname()[1]
    it = Replay(io.BytesIO(STREAM))
    await it.run(TcpAddress("127.0.0.1", port), lambda _: None)
    report = it.report()
    assert (report.exit_code, report.bytes) == (ExitCode.FAILED, 0)
    assert report.reason is not None
    assert report.reason.startswith(f"the destination at tcp:127.0.0.1:{port} cannot be reached: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("all_sent", [False, True])
async def test_a_signal_breaks_off(number: signal.Signals, all_sent: bool) -> None:
    reports: list[ReplayReport] = []
    with trio.fail_after(30), await listen() as back:
        address = TcpAddress("127.0.0.1", back.getsockname()[1])

        async def run() -> None:
            rate = None if all_sent else float(len(STREAM))
            reports.append(await replay(Replay(io.BytesIO(STREAM), rate=rate), address, lambda _: None))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            destination, _ = await back.accept()
            with destination:
                if all_sent:
                    assert await rest(destination) == (STREAM, "end of file")
                else:
                    await receive(destination, 1000)
                signal.raise_signal(number)
                if not all_sent:
                    assert (await rest(destination))[1] == "reset"
                while not reports:
                    await trio.sleep(0.01)
    assert reports[0].exit_code is ExitCode.FAILED
    assert reports[0].reason is not None
    assert reports[0].reason.startswith("the replay was stopped, after ")
    assert ("it is not known which host has the guest" in reports[0].reason) == all_sent


async def test_a_signal_ends_the_reading_of_a_pipe_that_brings_nothing() -> None:
    read, write = os.pipe()
    with io.FileIO(read) as pipe, io.FileIO(write, "w") as feed, trio.fail_after(30):
        with await listen() as back:
            address = TcpAddress("127.0.0.1", back.getsockname()[1])
            reports: list[ReplayReport] = []

            async def run() -> None:
                reports.append(await replay(Replay(pipe, take_trailing=False), address, lambda _: None))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                feed.write(STREAM[:1000])
                destination, _ = await back.accept()
                with destination:
                    assert await receive(destination, 1000) == STREAM[:1000]
                    await send(destination, PONG)  # heard, though nothing is there to be read
                    signal.raise_signal(signal.SIGTERM)
                    assert (await rest(destination))[1] == "reset"
        feed.write(b"x")  # lets the reading thread go
    assert reports[0].bytes == 1000


# --- the command


@asynccontextmanager
async def destination_of(stream: bytes, answer: bytes) -> AsyncIterator[str]:
    """Be a destination that takes a stream whole, answers, and ends; yield its URI."""

    async def take() -> None:
        sock, _ = await back.accept()
        with sock:
            assert await receive(sock, len(stream)) == stream
            await send(sock, answer)
            assert await rest(sock) == (b"", "end of file")

    with trio.fail_after(60), await listen() as back:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            yield f"tcp:127.0.0.1:{back.getsockname()[1]}"


@pytest.mark.parametrize("pack", [bytes, lzma.compress, gzip.compress, bz2.compress], ids=["plain", "xz", "gz", "bz2"])
async def test_the_command_sends_what_a_file_holds(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "guest.stream"
    path.write_bytes(pack(STREAM))
    async with destination_of(STREAM, PONG + SHUT_OK) as uri:
        code, output = await vmstate_proxy("replay", str(path), uri, "--json", "--rate", "100")
    lines = output.splitlines()
    assert code == 0
    assert json.loads(next(line for line in lines if line.startswith("{")))["confirmed"] is True
    assert any(line.endswith("sections; the destination has the guest") for line in lines)


async def test_the_command_tells_of_a_guest_that_was_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "guest.stream"
    path.write_bytes(STREAM)
    async with destination_of(STREAM, SHUT_FAILED) as uri:
        code, output = await vmstate_proxy("replay", str(path), uri)
    assert code == ExitCode.FAILED
    (line,) = output.splitlines()
    assert line.startswith(f"vmstate-proxy: {path}: all {len(STREAM)} bytes were sent, and the destination did not")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "STREAM"),
        (["/dev/null"], "URI"),
        (["/dev/null", "udp:x"], "write tcp:HOST:PORT"),
        (["/dev/null", "tcp::1", "--rate", "0"], "--rate"),
        (["/dev/null", "tcp::1", "--rate", "x"], "--rate"),
    ],
)
async def test_a_wrong_command_line_is_2(args: list[str], says: str) -> None:
    code, output = await vmstate_proxy("replay", *args)
    assert code == ExitCode.USAGE
    assert says in output
    assert "Traceback" not in output


@pytest.mark.parametrize("stream", ["/dev/null", "-"])
async def test_an_empty_stream_is_3(stream: str) -> None:
    code, output = await vmstate_proxy("replay", stream, "tcp::1")
    assert code == ExitCode.MALFORMED
    assert output.startswith(
        f"vmstate-proxy: {stream}: offset 0x0: the stream ends where the file header should follow"
    )
