"""One migration over real loopback sockets, between a source and a destination that the test plays."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import trio

from formats.arm.sysreg import MIDR_EL1
from proxy.errors import ExitCode
from proxy.judging.judge import Judge
from proxy.live.session import Session
from proxy.live.session_config import SessionConfig
from proxy.net.address import TcpAddress
from proxy.net.connection import SocketConnection
from proxy.net.route import Route
from proxy.policy.policy import Mode, Requirements
from proxy.report.report import Outcome, Report
from tests.proxy.helpers import (
    OPEN_RETURN_PATH,
    PONG,
    R0,
    R3,
    SHUT_FAILED,
    SHUT_OK,
    capture,
    device_state,
    judge,
    live,
    observer,
    short,
    with_value,
    without_vmdesc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


Socket = trio.socket.SocketType

SMP2 = "kvm-trixie-a57r0-smp2"
STREAM = live(short(SMP2))
EXPECTED = with_value(with_value(STREAM, MIDR_EL1, R3, 0), MIDR_EL1, R3, 1)
DEVICES = device_state(STREAM).offset
RESET = struct.pack("ii", 1, 0)


@dataclass
class Migration:
    """A session with both of its peers' ends."""

    source: Socket
    destination: Socket
    session: Session
    over: trio.Event

    @property
    def report(self) -> Report:
        return self.session.report

    async def confirm(self) -> Report:
        """Let the destination take the guest, and both peers go."""
        await send(self.destination, SHUT_OK)
        self.destination.close()
        assert await rest(self.source) == (SHUT_OK, "end of file")
        self.source.close()
        return await self.end()

    async def end(self) -> Report:
        """Wait until the session has ended."""
        await self.over.wait()
        return self.report


async def listen(host: str = "127.0.0.1") -> Socket:
    sock = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    await sock.bind((host, 0))
    sock.listen(8)
    return sock


async def connect(address: tuple[str, int]) -> Socket:
    sock = trio.socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        await sock.connect(address)
    except OSError:
        sock.close()
        raise
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def carry(session: Session) -> None:
    assert await session.wait_begin()
    await session.run()


@asynccontextmanager
async def migration(
    judge_: Judge | None = None,
    *,
    vmdesc_wait: float = 30,
    opening: bytes = STREAM[:8],
    allow_no_return_path: bool = False,
    limit: float = 10,
) -> AsyncIterator[Migration]:
    """Start a session with a source that sent the file header and waits; the destination got it.

    When the block is left, the session must end, within `limit` seconds in all, with both connections closed.
    """
    with trio.fail_after(limit), await listen() as front, await listen() as back:
        port = back.getsockname()[1]
        with await connect(front.getsockname()) as source:
            accepted, _ = await front.accept()
            config = SessionConfig(
                Route(TcpAddress("127.0.0.1", port)),
                judge_ or judge(R0),
                vmdesc_wait=vmdesc_wait,
                allow_no_return_path=allow_no_return_path,
            )
            session = Session(config, SocketConnection("source", accepted))
            over = trio.Event()

            async def run() -> None:
                assert await session.wait_begin()
                await session.run()
                over.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await send(source, opening)
                destination, _ = await back.accept()
                with destination:
                    assert await receive(destination, len(opening)) == opening
                    yield Migration(source, destination, session, over)
                    await over.wait()
            assert accepted.fileno() == -1


async def send(sock: Socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await sock.send(view) :]


async def receive(sock: Socket, length: int) -> bytes:
    """Receive just so many bytes."""
    data = bytearray()
    while len(data) < length:
        more = await sock.recv(length - len(data))
        assert more, f"end of file after {len(data)} of {length} bytes"
        data += more
    return bytes(data)


async def rest(sock: Socket) -> tuple[bytes, str]:
    """Receive until the end, and tell what it was: `end of file` or `reset`."""
    data = bytearray()
    try:
        while more := await sock.recv(1 << 20):
            data += more
    except ConnectionResetError:
        return bytes(data), "reset"
    return bytes(data), "end of file"


def reset(sock: Socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


async def nothing_comes(sock: Socket, seconds: float = 0.15) -> None:
    with trio.move_on_after(seconds):
        data = await sock.recv(1)
        raise AssertionError(f"{data!r} came")


# --- the good way


async def test_a_migration_is_rewritten() -> None:
    async with migration() as it:
        await send(it.source, STREAM[8:])
        assert await receive(it.destination, len(STREAM) - 8) == EXPECTED[8:]
        await send(it.destination, SHUT_OK)
        assert await receive(it.source, len(SHUT_OK)) == SHUT_OK
        it.destination.close()
        assert await rest(it.source) == (b"", "end of file")
        it.source.close()
        report = await it.end()
    assert (report.outcome, report.exit_code, report.reason) == (Outcome.REWRITTEN, ExitCode.OK, None)
    assert report.bytes_in == report.bytes_out == len(STREAM)
    assert [change.vcpu for change in report.changes] == [0, 1]


async def test_a_long_stream_passes_a_destination_that_reads_late() -> None:
    """More than the socket buffers take: the proxy waits, and loses nothing."""
    stream = live(capture(SMP2))
    ram_end = device_state(stream).offset - 18
    parts = stream[:ram_end] + stream[len(STREAM) - len(short(SMP2)) + 262 : ram_end] * 12 + stream[ram_end:]
    async with migration() as it, trio.open_nursery() as nursery:
        nursery.start_soon(send, it.source, parts[8:])
        await trio.sleep(0.1)
        got = await receive(it.destination, len(parts) - 8)
        assert got == with_value(with_value(parts, MIDR_EL1, R3, 0), MIDR_EL1, R3, 1)[8:]
        assert (await it.confirm()).outcome is Outcome.REWRITTEN


async def test_a_source_that_writes_single_bytes() -> None:
    async with migration(limit=60) as it:  # three tasks take turns for each of 20,000 bytes
        await send(it.source, STREAM[8:DEVICES])
        assert await receive(it.destination, DEVICES - 8) == EXPECTED[8:DEVICES]

        async def trickle() -> None:
            for at in range(DEVICES, len(STREAM)):
                await it.source.send(STREAM[at : at + 1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            assert await receive(it.destination, len(STREAM) - DEVICES) == EXPECTED[DEVICES:]
        assert (await it.confirm()).outcome is Outcome.REWRITTEN


async def test_the_device_state_waits_for_its_last_byte() -> None:
    async with migration() as it:
        await send(it.source, STREAM[8:-1])
        assert await receive(it.destination, DEVICES - 8) == EXPECTED[8:DEVICES]
        await nothing_comes(it.destination)
        await send(it.source, STREAM[-1:])
        assert await receive(it.destination, len(STREAM) - DEVICES) == EXPECTED[DEVICES:]
        assert (await it.confirm()).outcome is Outcome.REWRITTEN


# --- the return path


async def test_the_return_path_is_open_from_the_first_moment() -> None:
    async with migration() as it:
        await send(it.destination, PONG[:3])  # before the source said more than its header
        assert await receive(it.source, 3) == PONG[:3]
        await send(it.destination, PONG[3:])
        assert await receive(it.source, len(PONG) - 3) == PONG[3:]
        for at in range(8, DEVICES, 60):
            await send(it.source, STREAM[at : at + 60])
            await send(it.destination, PONG)
            assert await receive(it.source, len(PONG)) == PONG
        reset(it.source)


async def test_the_return_path_passes_any_bytes() -> None:
    """It is not the proxy's to understand."""
    junk = bytes(range(256)) * 2000
    async with migration() as it, trio.open_nursery() as nursery:
        nursery.start_soon(send, it.destination, junk)
        assert await receive(it.source, len(junk)) == junk
        reset(it.source)


async def test_the_end_of_the_source_leaves_the_return_path_open() -> None:
    async with migration() as it:
        await send(it.source, STREAM[8:])
        assert await receive(it.destination, len(STREAM) - 8) == EXPECTED[8:]
        it.source.shutdown(socket.SHUT_WR)
        assert await rest(it.destination) == (b"", "end of file")
        await trio.sleep(0.05)
        await send(it.destination, PONG + SHUT_OK)
        it.destination.shutdown(socket.SHUT_WR)
        assert await rest(it.source) == (PONG + SHUT_OK, "end of file")
        report = await it.end()
    assert report.outcome is Outcome.REWRITTEN


async def test_the_end_of_the_return_path_leaves_the_source_sending() -> None:
    async with migration() as it:
        await send(it.destination, SHUT_OK)
        it.destination.shutdown(socket.SHUT_WR)
        assert await rest(it.source) == (SHUT_OK, "end of file")
        await send(it.source, STREAM[8:])
        assert await receive(it.destination, len(STREAM) - 8) == EXPECTED[8:]
        it.source.close()
        assert await rest(it.destination) == (b"", "end of file")


# --- trouble


@pytest.mark.parametrize("after", [8, 100, DEVICES, len(STREAM) - 1, len(STREAM)])
async def test_a_reset_of_the_source_resets_the_destination(after: int) -> None:
    async with migration() as it:
        await send(it.source, STREAM[8:after])
        await receive(it.destination, after - 8 if after in (DEVICES, len(STREAM)) else 0)
        await trio.sleep(0.05)
        reset(it.source)
        data, how = await rest(it.destination)
        assert how == "reset"
        assert len(data) <= DEVICES - 8
        report = await it.end()
    assert report.outcome is Outcome.FAILED
    assert report.exit_code is ExitCode.FAILED
    assert report.reason is not None
    assert report.reason == "the source broke the connection: Connection reset by peer"


@pytest.mark.parametrize("after", [8, 100, DEVICES, len(STREAM)])
async def test_a_reset_of_the_destination_resets_the_source(after: int) -> None:
    async with migration() as it:
        await send(it.source, STREAM[8:after])
        await trio.sleep(0.05)
        reset(it.destination)
        assert await rest(it.source) == (b"", "reset")
        report = await it.end()
    assert report.outcome is Outcome.FAILED
    assert report.exit_code is ExitCode.FAILED
    assert report.reason is not None
    assert "the destination broke the connection: Connection reset by peer" in report.reason
    assert ("did not take the guest" in report.reason) == (after == len(STREAM))


@pytest.mark.parametrize("after", [8, 100, DEVICES - 30, DEVICES, DEVICES + 1000, len(STREAM) - 1])
async def test_a_truncated_stream_is_no_end_of_file(after: int) -> None:
    async with migration() as it:
        await send(it.source, STREAM[8:after])
        it.source.shutdown(socket.SHUT_WR)
        data, how = await rest(it.destination)
        assert how == "reset"
        assert EXPECTED[8:DEVICES].startswith(data)
        assert await rest(it.source) == (b"", "reset")
        report = await it.end()
    assert (report.outcome, report.exit_code) == (Outcome.FAILED, ExitCode.MALFORMED)


@pytest.mark.parametrize("end", [lambda source: source.close(), reset], ids=["end of file", "reset"])
async def test_a_source_that_gives_up_while_its_state_is_held_has_the_one_guest(end: Callable[[Socket], None]) -> None:
    """`migrate_cancel` just when all is sent: the source runs its guest on, so none of the state may go on."""
    async with migration() as it:
        await send(it.source, STREAM[8:-1])
        assert await receive(it.destination, DEVICES - 8) == EXPECTED[8:DEVICES]
        os.write(it.source.fileno(), STREAM[-1:])  # the proxy gets no turn between this and the end
        end(it.source)
        assert await rest(it.destination) == (b"", "reset")
        report = await it.end()
    assert (report.outcome, report.exit_code) == (Outcome.FAILED, ExitCode.FAILED)


async def test_the_report_says_between_whom_it_went() -> None:
    async with migration() as it:
        source, destination = it.source.getsockname(), it.destination.getsockname()
        await send(it.source, STREAM[8:])
        await receive(it.destination, len(STREAM) - 8)
        report = await it.confirm()
    assert report.source == "tcp:{}:{}".format(*source)
    assert report.destination == "tcp:{}:{}".format(*destination)
    assert report.started is not None
    assert report.ended is not None
    assert report.started < report.ended


async def test_a_refused_processor_resets_both() -> None:
    async with migration(judge()) as it:
        await send(it.source, STREAM[8:DEVICES])
        assert await receive(it.destination, DEVICES - 8) == STREAM[8:DEVICES]
        await send(it.source, STREAM[DEVICES:])
        assert await rest(it.destination) == (b"", "reset")
        assert await rest(it.source) == (b"", "reset")
        report = await it.end()
    assert (report.outcome, report.exit_code) == (Outcome.REFUSED, ExitCode.REFUSED)
    assert report.changes == []
    assert report.bytes_out == DEVICES


@pytest.mark.parametrize(("machine", "waits"), [(b"virt-5.2", True), (b"virt-6.1", False)])
async def test_an_old_source_is_reset_once_it_has_fallen_silent(machine: bytes, waits: bool) -> None:
    """QEMU before 6.1 takes a return path that breaks just before it looks for one for none, and gives up its guest."""
    opening = STREAM.replace(b"virt-7.2", machine, 1)
    async with migration(judge()) as it:
        await send(it.source, opening[8:])
        assert (await rest(it.destination))[1] == "reset"
        try:
            for _ in range(5):
                await send(it.source, b"more")
                await trio.sleep(0.05)
        except (ConnectionResetError, BrokenPipeError):
            assert not waits
        else:
            assert waits
            assert await rest(it.source) == (b"", "reset")
        report = await it.end()
    assert (report.outcome, report.exit_code) == (Outcome.REFUSED, ExitCode.REFUSED)


async def test_an_old_source_that_has_more_to_send_is_reset_at_once() -> None:
    """It could go over to postcopy while it is heard out, and would give up its memory."""
    opening = STREAM.replace(b"virt-7.2", b"virt-5.2", 1)
    async with migration() as it:
        await send(it.source, opening[8:DEVICES] + b"\xff")
        assert (await rest(it.destination))[1] == "reset"
        await trio.sleep(0.02)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await send(it.source, b"more")
        assert (await it.end()).exit_code is ExitCode.MALFORMED


async def test_a_missing_return_path_resets_both_before_any_section() -> None:
    async with migration() as it:
        await send(it.source, STREAM.replace(OPEN_RETURN_PATH, b"", 1)[8:1000])
        data, how = await rest(it.destination)
        assert how == "reset"
        assert len(data) <= 61 - 8
        assert await rest(it.source) == (b"", "reset")
        report = await it.end()
    assert report.outcome is Outcome.REFUSED
    assert report.reason is not None
    assert "return-path" in report.reason


async def test_without_a_return_path_the_end_of_both_is_success() -> None:
    async with migration(allow_no_return_path=True) as it:
        await send(it.source, short(SMP2)[8:])
        it.source.close()
        data, how = await rest(it.destination)
        assert (len(data), how) == (len(short(SMP2)) - 8, "end of file")
        it.destination.close()
        report = await it.end()
    assert (report.outcome, report.exit_code) == (Outcome.REWRITTEN, ExitCode.OK)


async def test_a_broken_stream_resets_both() -> None:
    async with migration() as it:
        await send(it.source, b"GET / HTTP/1.1\r\n\r\n")
        assert await rest(it.destination) == (b"", "reset")
        assert await rest(it.source) == (b"", "reset")
        assert (await it.end()).exit_code is ExitCode.MALFORMED


async def test_an_observer_passes_a_foreign_stream_on_both_ways() -> None:
    async with migration(observer(), opening=b"GET / HTTP/1.1\r\n\r\n") as it:
        await send(it.destination, b"200 OK\r\n")
        assert await receive(it.source, 8) == b"200 OK\r\n"
        await send(it.source, b"more")
        it.source.shutdown(socket.SHUT_WR)
        assert await rest(it.destination) == (b"more", "end of file")
        it.destination.close()
        assert await rest(it.source) == (b"", "end of file")


async def test_an_observer_changes_nothing() -> None:
    async with migration(judge(R0, mode=Mode.OBSERVE)) as it:
        await send(it.source, STREAM[8:])
        assert await receive(it.destination, len(STREAM) - 8) == STREAM[8:]
        report = await it.confirm()
    assert report.outcome is Outcome.UNCHANGED
    assert len(report.would_change) == 2


@pytest.mark.parametrize("said", [b"", PONG, SHUT_FAILED], ids=["nothing", "pong", "shut 1"])
async def test_a_destination_that_does_not_confirm_has_not_got_the_guest(said: bytes) -> None:
    async with migration() as it:
        await send(it.source, STREAM[8:])
        assert await receive(it.destination, len(STREAM) - 8) == EXPECTED[8:]
        await send(it.destination, said)
        it.destination.close()
        assert await rest(it.source) == (said, "end of file")
        it.source.close()
        report = await it.end()
    assert (report.outcome, report.exit_code) == (Outcome.FAILED, ExitCode.FAILED)
    assert report.reason is not None
    assert "did not take the guest" in report.reason


async def test_a_destination_that_dies_after_it_took_the_guest_has_not_refused_it() -> None:
    """The source got SHUT 0 and gave its guest up; nobody may be told that it goes on."""
    async with migration() as it:
        await send(it.source, STREAM[8:])
        assert await receive(it.destination, len(STREAM) - 8) == EXPECTED[8:]
        await send(it.destination, SHUT_OK)
        assert await receive(it.source, len(SHUT_OK)) == SHUT_OK
        reset(it.destination)
        await rest(it.source)
        report = await it.end()
    assert "did not take the guest" not in (report.reason or "")


async def test_a_destination_that_gives_up_early_fails_the_migration() -> None:
    """As a QEMU that cannot load RAM: SHUT 1, then its end; the source ends then, too."""
    async with migration() as it:
        await send(it.source, STREAM[8:DEVICES])
        await receive(it.destination, DEVICES - 8)
        await send(it.destination, SHUT_FAILED)
        it.destination.shutdown(socket.SHUT_WR)
        assert await rest(it.source) == (SHUT_FAILED, "end of file")
        it.source.close()
        assert (await rest(it.destination))[1] == "reset"
        report = await it.end()
    assert report.outcome is Outcome.FAILED
    assert report.reason is not None
    assert "the destination gave up" in report.reason


@pytest.mark.parametrize(
    ("said", "exit_code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", ExitCode.MALFORMED),
        (STREAM[:5], ExitCode.MALFORMED),
        (short(SMP2), ExitCode.REFUSED),
        (STREAM, ExitCode.REFUSED),
    ],
    ids=["foreign", "cut header", "no return path", "processor"],
)
async def test_what_is_refused_at_once_never_reaches_the_destination(said: bytes, exit_code: ExitCode) -> None:
    """A QEMU that waits for a migration takes one connection only."""
    begun: list[None] = []
    with trio.fail_after(10), await listen() as front, await listen() as back:
        with await connect(front.getsockname()) as source:
            accepted, _ = await front.accept()
            session = Session(
                SessionConfig(Route(TcpAddress("127.0.0.1", back.getsockname()[1])), judge()),
                SocketConnection("source", accepted),
            )
            await send(source, said)
            source.shutdown(socket.SHUT_WR)
            if await session.wait_begin():
                begun.append(None)
                await session.run()
            assert await rest(source) == (b"", "reset")
        with trio.move_on_after(0.02):
            destination, _ = await back.accept()
            with destination:
                # Of a migration that a chunk's border let begin, it must not see a clean end, or a device.
                data, how = await rest(destination)
                assert how == "reset"
                assert len(data) <= DEVICES
                assert said[:4] == b"QEVM"
    assert begun == [None]
    assert session.report.exit_code is exit_code


async def test_a_peer_that_leaves_without_a_word_is_no_migration() -> None:
    begun: list[None] = []
    with trio.fail_after(10), await listen() as front, await listen() as back:
        with await connect(front.getsockname()) as source:
            accepted, _ = await front.accept()
            config = SessionConfig(Route(TcpAddress("127.0.0.1", back.getsockname()[1])), judge(R0))
            source.shutdown(socket.SHUT_WR)
            assert not await Session(config, SocketConnection("source", accepted)).wait_begin()
            assert await rest(source) == (b"", "end of file")
        with trio.move_on_after(0.02):
            await back.accept()
            raise AssertionError("the destination was dialled")
    assert begun == []


async def test_a_header_may_come_byte_by_byte() -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(10))
        front, back = stack.enter_context(await listen()), stack.enter_context(await listen())
        source = stack.enter_context(await connect(front.getsockname()))
        accepted, _ = await front.accept()
        config = SessionConfig(Route(TcpAddress("127.0.0.1", back.getsockname()[1])), judge(R0))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(carry, Session(config, SocketConnection("source", accepted)))
        for at in range(100):
            await send(source, STREAM[at : at + 1])
            await trio.sleep(0.001)
        destination, _ = await back.accept()
        await send(source, STREAM[100:])
        with destination:
            assert await receive(destination, len(STREAM)) == EXPECTED
            await send(destination, SHUT_OK)
        assert await rest(source) == (SHUT_OK, "end of file")
        source.close()


@pytest.mark.parametrize("said", [STREAM[:1000], STREAM], ids=["begun", "whole"])
async def test_an_unreachable_destination_resets_the_source(said: bytes) -> None:
    with trio.fail_after(10), await listen() as front, await listen() as back:
        port = back.getsockname()[1]
        back.close()
        with await connect(front.getsockname()) as source:
            accepted, _ = await front.accept()
            session = Session(
                SessionConfig(Route(TcpAddress("127.0.0.1", port)), judge(R0)), SocketConnection("source", accepted)
            )
            await send(source, said)
            assert await session.wait_begin()
            await session.run()
            assert await rest(source) == (b"", "reset")
    report = session.report
    assert (report.outcome, report.exit_code) == (Outcome.FAILED, ExitCode.FAILED)
    assert report.reason is not None
    assert report.reason.startswith(f"the destination at tcp:127.0.0.1:{port} cannot be reached: ")
    assert report.reason.endswith("Connection refused")


@pytest.mark.parametrize("host", ["no..name", "x" * 64, "no_such_name.invalid"])
async def test_a_destination_without_an_address_resets_the_source(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with trio.fail_after(10), await listen() as front, await connect(front.getsockname()) as source:
        accepted, _ = await front.accept()
        config = SessionConfig(Route(TcpAddress(host, 1)), judge(R0))
        session = Session(config, SocketConnection("source", accepted))
        await send(source, STREAM[:1000])
        assert await session.wait_begin()
        await session.run()
        assert await rest(source) == (b"", "reset")
    assert session.report.reason is not None
    assert session.report.reason.startswith("the destination at ")
    assert capsys.readouterr().err == ""


async def test_a_stopped_session_resets_both() -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(10))
        front, back = stack.enter_context(await listen()), stack.enter_context(await listen())
        source = stack.enter_context(await connect(front.getsockname()))
        accepted, _ = await front.accept()
        session = Session(
            SessionConfig(Route(TcpAddress("127.0.0.1", back.getsockname()[1])), judge(R0)),
            SocketConnection("source", accepted),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, session)
            await send(source, STREAM)
            destination, _ = await back.accept()
            assert await receive(destination, len(STREAM)) == EXPECTED
            nursery.cancel_scope.cancel()
        with destination:
            assert (await rest(destination))[1] == "reset"
        assert (await rest(source))[1] == "reset"
    assert (session.report.outcome, session.report.reason) == (Outcome.FAILED, "the proxy was stopped")


# --- no vmdesc


async def test_a_suppressed_vmdesc_is_not_waited_for() -> None:
    """Footers leave no doubt, and the guest stands."""
    stream = without_vmdesc(STREAM)
    async with migration(vmdesc_wait=30) as it:
        await send(it.source, stream[8:])
        assert await receive(it.destination, len(stream) - 8) == EXPECTED[8 : len(stream)]
        assert (await it.confirm()).outcome is Outcome.REWRITTEN


async def test_a_vmdesc_that_the_policy_wants_is_waited_for() -> None:
    policy = replace(judge(R0).policy, require=Requirements(vmdesc=True))
    end = len(without_vmdesc(STREAM))
    async with migration(Judge(policy, judge(R0).host), vmdesc_wait=30) as it:
        await send(it.source, STREAM[8:end])
        assert await receive(it.destination, DEVICES - 8) == EXPECTED[8:DEVICES]
        await nothing_comes(it.destination)
        await send(it.source, STREAM[end:])
        assert await receive(it.destination, len(STREAM) - DEVICES) == EXPECTED[DEVICES:]
        assert (await it.confirm()).outcome is Outcome.REWRITTEN


async def test_a_vmdesc_that_comes_late_passes_on() -> None:
    stream = without_vmdesc(STREAM)
    async with migration(vmdesc_wait=0.05) as it:
        await send(it.source, stream[8:])
        assert await receive(it.destination, len(stream) - 8) == EXPECTED[8 : len(stream)]
        await send(it.source, STREAM[len(stream) :])
        assert await receive(it.destination, len(STREAM) - len(stream)) == EXPECTED[len(stream) :]
        assert (await it.confirm()).outcome is Outcome.REWRITTEN


async def test_a_pause_within_the_device_state_releases_nothing() -> None:
    """Longer than the wait for the vmdesc, in the midst of a section and of the vmdesc."""
    ends = [DEVICES + 5000, len(without_vmdesc(STREAM)) - 1, len(STREAM) - 3]
    async with migration(vmdesc_wait=0.02) as it:
        start = 8
        for end in ends:
            await send(it.source, STREAM[start:end])
            await receive(it.destination, DEVICES - 8 if start == 8 else 0)
            await nothing_comes(it.destination, 0.1)
            start = end
        await send(it.source, STREAM[start:])
        assert await receive(it.destination, len(STREAM) - DEVICES) == EXPECTED[DEVICES:]
        assert (await it.confirm()).outcome is Outcome.REWRITTEN


async def test_what_cannot_be_located_without_a_vmdesc_is_not_waited_for_for_ever() -> None:
    """The last section's footer names another section than its header, so no footers cut the state."""
    stream = without_vmdesc(STREAM)
    stream = stream[:-2] + bytes([stream[-2] ^ 0xFF]) + stream[-1:]
    async with migration(vmdesc_wait=0.02) as it:
        await send(it.source, stream[8:])
        passed, end = await rest(it.destination)
        assert (passed, end) == (EXPECTED[8:DEVICES], "reset")
        assert (await rest(it.source))[1] == "reset"
        await it.over.wait()
        report = it.session.report
        assert report.outcome is Outcome.REFUSED
        assert "the source sends no more" in (report.reason or "")
        assert "suppress-vmdesc=off" in (report.reason or "")
