"""Recordings over real loopback sockets, of a source, and for a destination, that the test plays."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

import proxy.recording.destination
from formats.stream.events import SectionBegin
from proxy.errors import ExitCode
from proxy.net.address import TcpAddress
from proxy.net.connection import SocketConnection
from proxy.recording.recorder import RecordConfig, Recorder
from proxy.recording.recording_file import RecordingFile
from tests.proxy.helpers import (
    OPEN_RETURN_PATH,
    PONG,
    SHUT_FAILED,
    SHUT_OK,
    capture,
    cut,
    device_state,
    events,
    live,
    without_vmdesc,
)
from tests.proxy.live.test_session import connect, listen, nothing_comes, receive, reset, rest, send
from tests.proxy.recording.record_streams import (
    DEVICES,
    NO_RETURN_PATH,
    OPAQUE,
    POSTCOPY_ADVISE,
    SMP2,
    STREAM,
    before_sections,
)
from tests.streams import command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.recording.record_report import RecordReport

Socket = trio.socket.SocketType


@dataclass
class Recording:
    """A recording under way, with both of its peers' ends."""

    source: Socket
    back: Socket
    path: Path
    recorder: Recorder
    over: trio.Event = field(default_factory=trio.Event)
    reports: list[RecordReport] = field(default_factory=list)

    async def report(self) -> RecordReport:
        """Wait for the end."""
        await self.over.wait()
        return self.reports[0]

    def left(self) -> dict[str, bytes]:
        """Return the files that there are, by name."""
        return {path.name: path.read_bytes() for path in self.path.parent.iterdir()}


@asynccontextmanager
async def recording(
    directory: Path, *, onward: bool = False, name: str = "out", opening: bytes = STREAM[:8], **config: float
) -> AsyncIterator[Recording]:
    """Record from a source that sent `opening`; when the block is left, the recorder must end within 30 seconds."""
    with trio.fail_after(30), await listen() as front, await listen() as back:
        address = TcpAddress("127.0.0.1", back.getsockname()[1]) if onward else None
        with await connect(front.getsockname()) as source:
            accepted, _ = await front.accept()
            file = RecordingFile(str(directory / name))
            recorder = Recorder(RecordConfig(address, **config), file)  # type: ignore[arg-type]
            it = Recording(source, back, directory / name, recorder)

            async def run() -> None:
                await recorder.run(SocketConnection("source", accepted), opening)
                it.reports.append(recorder.report())
                it.over.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                yield it
                await it.over.wait()
            assert accepted.fileno() == -1


@asynccontextmanager
async def passing_on(directory: Path, name: str = "out") -> AsyncIterator[tuple[Recording, Socket]]:
    """Record what goes to a destination; it has been dialled."""
    async with recording(directory, onward=True, name=name) as it:
        destination, _ = await it.back.accept()
        with destination:
            yield it, destination


# --- alone: the recorder is the destination


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
async def test_a_source_is_recorded_and_keeps_its_guest(tmp_path: Path, size: int) -> None:
    stream = STREAM if size > 1 else STREAM[:DEVICES]  # byte by byte only what comes before the devices
    async with recording(tmp_path) as it:
        for piece in cut(stream[8:], range(0, len(stream), size)):
            await send(it.source, piece)
        await send(it.source, STREAM[len(stream) :])
        assert await rest(it.source) == (PONG + SHUT_FAILED, "end of file")
        it.source.close()
        report = await it.report()
    assert it.left() == {"out": STREAM}
    assert (report.exit_code, report.reason) == (ExitCode.OK, None)
    assert json.loads(report.as_json()) == {
        "schema_version": 1,
        "file": str(it.path),
        "bytes": len(STREAM),
        "sections": len([event for event in events(STREAM) if isinstance(event, SectionBegin)])
        + len(device_state(STREAM).sections),
        "complete": True,
        "return_path": True,
        "confirmed": None,
        "not_understood_from": None,
        "reason": None,
    }
    assert "the source was told to keep its guest" in report.summary()


async def test_the_source_is_let_go_only_after_its_last_byte(tmp_path: Path) -> None:
    async with recording(tmp_path) as it:
        await send(it.source, STREAM[8:-1])
        assert await receive(it.source, len(PONG)) == PONG
        await nothing_comes(it.source)
        await send(it.source, STREAM[-1:])
        assert await rest(it.source) == (SHUT_FAILED, "end of file")
        it.source.close()


async def test_every_ping_is_answered_with_its_value(tmp_path: Path) -> None:
    pings = [command(2, number.to_bytes(4, "big")) for number in (0, 7, 0xFFFFFFFF)]
    async with recording(tmp_path) as it:
        await send(it.source, before_sections(STREAM, b"".join(pings))[8:])
        said, how = await rest(it.source)
        it.source.close()
    assert how == "end of file"
    assert said == PONG + b"".join(b"\0\2\0\4" + ping[-4:] for ping in pings) + SHUT_FAILED


async def test_a_source_that_resets_once_it_was_told_is_recorded(tmp_path: Path) -> None:
    """As a QEMU does that closes with a message of the return path unread."""
    async with recording(tmp_path) as it:
        await send(it.source, STREAM[8:])
        await receive(it.source, len(PONG + SHUT_FAILED))
        reset(it.source)
        assert (await it.report()).exit_code is ExitCode.OK
    assert it.left() == {"out": STREAM}


async def test_a_source_that_never_goes_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy.recording.destination, "_GOODBYE", 0.05)
    async with recording(tmp_path) as it:
        await send(it.source, STREAM[8:])
        assert (await it.report()).exit_code is ExitCode.OK
    assert it.left() == {"out": STREAM}


async def test_without_a_return_path_the_source_is_refused(tmp_path: Path) -> None:
    async with recording(tmp_path) as it:
        await send(it.source, NO_RETURN_PATH[8:])
        assert await rest(it.source) == (b"", "reset")
        report = await it.report()
    assert report.exit_code is ExitCode.REFUSED
    assert "return-path" in report.summary()
    assert "--allow-no-return-path" in report.summary()
    assert it.left() == {}


async def test_without_a_return_path_and_allowed(tmp_path: Path) -> None:
    async with recording(tmp_path, allow_no_return_path=True) as it:
        await send(it.source, NO_RETURN_PATH[8:])
        it.source.shutdown(socket.SHUT_WR)
        assert await rest(it.source) == (b"", "end of file")
        report = await it.report()
    assert (report.exit_code, report.complete, report.return_path) == (ExitCode.OK, True, False)
    assert "the source has stopped its guest" in report.summary()
    assert it.left() == {"out": NO_RETURN_PATH}


@pytest.mark.parametrize("allowed", [False, True])
async def test_what_announces_postcopy_is_refused_alone(tmp_path: Path, allowed: bool) -> None:
    """After a switch to postcopy no source can take its guest back."""
    async with recording(tmp_path, allow_no_return_path=allowed) as it:
        await send(it.source, before_sections(STREAM, POSTCOPY_ADVISE)[8:])
        assert (await rest(it.source))[1] == "reset"
        report = await it.report()
    assert report.exit_code is ExitCode.REFUSED
    assert "postcopy" in report.summary()
    assert "--connect" in report.summary()
    assert it.left() == {}


@pytest.mark.parametrize("how", ["end of file", "reset"])
@pytest.mark.parametrize("after", [8, 30, 61, 100, DEVICES - 3, DEVICES + 1000, len(STREAM) - 1])
async def test_what_breaks_off_stays_as_partial(tmp_path: Path, after: int, how: str) -> None:
    async with recording(tmp_path) as it:
        await send(it.source, STREAM[8:after])
        while it.recorder.length < after:
            await trio.sleep(0.005)
        if how == "reset":
            reset(it.source)
        else:
            it.source.shutdown(socket.SHUT_WR)
            assert (await rest(it.source))[1] == "reset"
        report = await it.report()
    assert it.left() == {"out.partial": STREAM[:after]}
    assert (report.exit_code, report.complete, report.file) == (ExitCode.MALFORMED, False, f"{it.path}.partial")
    assert report.summary().startswith(f"{it.path}.partial: cut at offset {after:#x}")
    assert ("the source ended the stream there" if how == "end of file" else "Connection reset") in report.summary()
    if after >= DEVICES:
        assert "section device state" in report.summary()


async def test_a_cut_within_ram_names_its_section(tmp_path: Path) -> None:
    stream = live(capture(SMP2))
    async with recording(tmp_path) as it:
        await send(it.source, stream[8:300_000])
        it.source.close()
        report = await it.report()
    assert "cut at offset 0x493e0, section 'ram' instance 0: " in report.summary()
    assert it.left() == {"out.partial": stream[:300_000]}


async def test_a_vmdesc_that_does_not_come_is_waited_for_only_so_long(tmp_path: Path) -> None:
    stream = without_vmdesc(STREAM)
    async with recording(tmp_path, wait=0.05) as it:
        await send(it.source, stream[8:])
        assert await rest(it.source) == (PONG + SHUT_FAILED, "end of file")
        it.source.close()
        assert (await it.report()).exit_code is ExitCode.OK
    assert it.left() == {"out": stream}


async def test_a_vmdesc_that_comes_late_is_kept(tmp_path: Path) -> None:
    stream = without_vmdesc(STREAM)
    async with recording(tmp_path, wait=0.05) as it:
        await send(it.source, stream[8:])
        assert await rest(it.source) == (PONG + SHUT_FAILED, "end of file")
        await send(it.source, STREAM[len(stream) :])
        it.source.close()
        assert (await it.report()).exit_code is ExitCode.OK
    assert it.left() == {"out": STREAM}


async def test_what_follows_the_end_is_kept_and_told(tmp_path: Path) -> None:
    """A guest may have forged the end; it is found out by the first byte after it."""
    async with recording(tmp_path) as it:
        await send(it.source, STREAM[8:])
        await receive(it.source, len(PONG + SHUT_FAILED))
        await send(it.source, b"more")
        it.source.close()
        report = await it.report()
    assert (report.exit_code, report.complete) == (ExitCode.MALFORMED, False)
    assert report.not_understood_from == len(STREAM)
    assert "more bytes follow the end" in report.summary()
    assert it.left() == {"out.partial": STREAM + b"more"}


async def test_what_is_not_understood_is_recorded_to_its_silence(tmp_path: Path) -> None:
    async with recording(tmp_path, wait=0.02) as it:
        await send(it.source, OPAQUE[8:])
        assert await rest(it.source) == (PONG, "reset")
        report = await it.report()
    assert (report.exit_code, report.complete) == (ExitCode.REFUSED, False)
    assert report.not_understood_from == DEVICES
    assert f"not understood from there on: offset {DEVICES:#x}, section 'from-the-future'" in report.summary()
    assert "the source sends no more" in report.summary()
    assert it.left() == {"out.partial": OPAQUE}


async def test_a_pause_amidst_what_is_not_understood_is_no_end(tmp_path: Path) -> None:
    async with recording(tmp_path, wait=0.05) as it:
        for piece in cut(OPAQUE[8:], range(DEVICES, len(OPAQUE), 5000)):
            await send(it.source, piece)
            await trio.sleep(0.1)
        it.source.close()
        await it.report()
    assert it.left() == {"out.partial": OPAQUE}


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02", b"\x11\x22\x33\x44\0\0\0\1", b"QE"])
@pytest.mark.parametrize("onward", [False, True])
async def test_what_is_no_migration_is_not_recorded(tmp_path: Path, said: bytes, onward: bool) -> None:
    async with recording(tmp_path, onward=onward, opening=said) as it:
        it.source.shutdown(socket.SHUT_WR)
        assert await rest(it.source) == (b"", "reset")
        report = await it.report()
    assert report.exit_code is ExitCode.MALFORMED
    assert report.reason is not None
    assert report.reason.startswith("offset ")
    assert it.left() == {}


async def test_a_header_may_come_byte_by_byte(tmp_path: Path) -> None:
    async with recording(tmp_path, opening=STREAM[:1]) as it:
        for at in range(1, 100):
            await send(it.source, STREAM[at : at + 1])
            await trio.sleep(0.001)
        await send(it.source, STREAM[100:])
        assert await rest(it.source) == (PONG + SHUT_FAILED, "end of file")
        it.source.close()
    assert it.left() == {"out": STREAM}


class FullDisk(io.RawIOBase):
    """What takes some bytes, and then no more."""

    def __init__(self, room: int) -> None:
        self._room = room

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(1000)
    monkeypatch.setattr(RecordingFile, "write", lambda _self, data: disk.write(data))


async def test_a_full_disk_resets_a_source_without_another_destination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch)
    async with recording(tmp_path) as it:
        await send(it.source, STREAM[8:])
        assert (await rest(it.source))[1] == "reset"
        report = await it.report()
    assert report.exit_code is ExitCode.FAILED
    assert "out.partial: cannot be written on: No space left on device" in report.summary()


# --- between two


async def test_a_migration_passes_both_ways_and_is_recorded(tmp_path: Path) -> None:
    async with passing_on(tmp_path) as (it, destination):
        await send(destination, PONG[:3])  # the return path is open before the source has said more than its header
        assert await receive(it.source, 3) == PONG[:3]
        await send(destination, PONG[3:])
        assert await receive(it.source, 5) == PONG[3:]
        await send(it.source, STREAM[8:])
        assert await receive(destination, len(STREAM)) == STREAM
        await nothing_comes(it.source)
        await send(destination, SHUT_OK)
        destination.close()
        assert await rest(it.source) == (SHUT_OK, "end of file")
        it.source.close()
        report = await it.report()
    assert it.left() == {"out": STREAM}
    assert (report.exit_code, report.complete, report.confirmed, report.reason) == (ExitCode.OK, True, True, None)
    assert "the destination has the guest" in report.summary()


@pytest.mark.parametrize("size", [1, 1000])
async def test_nothing_is_held_back(tmp_path: Path, size: int) -> None:
    """Each piece has reached the destination before the next is sent, also amidst the device state."""
    async with passing_on(tmp_path) as (it, destination):
        await receive(destination, 8)
        stream = STREAM[8 : DEVICES + 10_000] if size > 1 else STREAM[8:400]
        for piece in cut(stream, range(0, len(stream), size)):
            await send(it.source, piece)
            assert await receive(destination, len(piece)) == piece
        reset(it.source)


async def test_the_return_path_passes_any_bytes(tmp_path: Path) -> None:
    junk = bytes(range(256)) * 2000
    async with passing_on(tmp_path) as (it, destination):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, destination, junk)
            assert await receive(it.source, len(junk)) == junk
        reset(it.source)


async def test_a_slow_destination_holds_up_the_source_and_nothing_is_lost(tmp_path: Path) -> None:
    stream = live(capture(SMP2))
    parts = stream[: device_state(stream).offset - 18]
    more = parts + stream[262 + len(OPEN_RETURN_PATH) : len(parts)] * 10 + stream[len(parts) :]
    async with passing_on(tmp_path, name="out.gz") as (it, destination):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, it.source, more[8:])
            await trio.sleep(0.2)
            assert await receive(destination, len(more)) == more
        await send(destination, SHUT_OK)
        destination.close()
        assert await rest(it.source) == (SHUT_OK, "end of file")
        it.source.close()
    assert gzip.decompress(it.left()["out.gz"]) == more


async def test_postcopy_passes_on(tmp_path: Path) -> None:
    stream = before_sections(STREAM, POSTCOPY_ADVISE)
    async with passing_on(tmp_path) as (it, destination):
        await send(it.source, stream[8:])
        assert await receive(destination, len(stream)) == stream
        await send(destination, SHUT_OK)
        destination.close()
        await rest(it.source)
        it.source.close()
        report = await it.report()
    assert (report.exit_code, report.complete) == (ExitCode.OK, True)
    assert it.left() == {"out": stream}


async def test_without_a_return_path_nobody_confirms(tmp_path: Path) -> None:
    async with passing_on(tmp_path) as (it, destination):
        await send(it.source, NO_RETURN_PATH[8:])
        it.source.close()
        assert await rest(destination) == (NO_RETURN_PATH, "end of file")
        destination.close()
        report = await it.report()
    assert (report.exit_code, report.complete, report.confirmed) == (ExitCode.OK, True, None)
    assert "nobody said whether the destination has the guest" in report.summary()


@pytest.mark.parametrize(
    ("said", "told"), [(b"", "saying nothing"), (PONG, "saying nothing"), (SHUT_FAILED, "error 1")]
)
async def test_a_destination_that_does_not_take_the_guest(tmp_path: Path, said: bytes, told: str) -> None:
    """The recording is whole all the same, and the source goes on."""
    async with passing_on(tmp_path) as (it, destination):
        await send(it.source, STREAM[8:])
        assert await receive(destination, len(STREAM)) == STREAM
        await send(destination, said)
        destination.close()
        assert await rest(it.source) == (said, "end of file")
        it.source.close()
        report = await it.report()
    assert (report.exit_code, report.complete, report.confirmed) == (ExitCode.FAILED, True, False)
    assert f"the destination did not take the guest: it ended {told}" in report.summary().replace("with ", "")
    assert "the source keeps its guest" in report.summary()
    assert it.left() == {"out": STREAM}


@pytest.mark.parametrize("after", [100, DEVICES, len(STREAM)])
async def test_a_destination_that_resets_resets_the_source(tmp_path: Path, after: int) -> None:
    async with passing_on(tmp_path) as (it, destination):
        await send(it.source, STREAM[8:after])
        await receive(destination, after)
        reset(destination)
        assert await rest(it.source) == (b"", "reset")
        report = await it.report()
    assert report.exit_code is (ExitCode.FAILED if after == len(STREAM) else ExitCode.MALFORMED)
    assert "the destination broke the connection" in report.summary()
    assert it.left() == {"out" if after == len(STREAM) else "out.partial": STREAM[:after]}


async def test_a_destination_that_gives_up_early(tmp_path: Path) -> None:
    async with passing_on(tmp_path) as (it, destination):
        await send(it.source, STREAM[8:DEVICES])
        await receive(destination, DEVICES)
        await send(destination, SHUT_FAILED)
        destination.shutdown(socket.SHUT_WR)
        assert await rest(it.source) == (SHUT_FAILED, "end of file")
        it.source.close()
        assert (await rest(destination))[1] == "reset"
        report = await it.report()
    assert report.exit_code is ExitCode.MALFORMED
    assert f"cut at offset {DEVICES:#x}" in report.summary()
    assert "the destination ended with error 1" in report.summary()


@pytest.mark.parametrize("after", [30, DEVICES, len(STREAM) - 1])
async def test_a_source_that_ends_early_gives_the_destination_no_clean_end(tmp_path: Path, after: int) -> None:
    async with passing_on(tmp_path) as (it, destination):
        await send(it.source, STREAM[8:after])
        it.source.shutdown(socket.SHUT_WR)
        data, how = await rest(destination)
        assert how == "reset"
        assert STREAM[:after].startswith(data)
        assert await rest(it.source) == (b"", "reset")
        report = await it.report()
    assert report.exit_code is ExitCode.MALFORMED
    assert it.left() == {"out.partial": STREAM[:after]}


async def test_a_migration_is_confirmed_whatever_then_becomes_of_the_connections(tmp_path: Path) -> None:
    async with passing_on(tmp_path) as (it, destination):
        await send(it.source, STREAM[8:])
        await receive(destination, len(STREAM))
        await send(destination, SHUT_OK)
        await receive(it.source, len(SHUT_OK))
        reset(it.source)
        await rest(destination)
        report = await it.report()
    assert (report.exit_code, report.confirmed) == (ExitCode.OK, True)
    assert it.left() == {"out": STREAM}


async def test_what_is_not_understood_passes_on_and_is_whole_when_the_guest_has_arrived(tmp_path: Path) -> None:
    async with passing_on(tmp_path) as (it, destination):
        await send(it.source, OPAQUE[8:])
        assert await receive(destination, len(OPAQUE)) == OPAQUE
        await send(destination, SHUT_OK)
        destination.close()
        assert await rest(it.source) == (SHUT_OK, "end of file")
        it.source.close()
        report = await it.report()
    assert (report.exit_code, report.complete, report.not_understood_from) == (ExitCode.OK, True, DEVICES)
    assert f"not understood from there on: offset {DEVICES:#x}" in report.summary()
    assert it.left() == {"out": OPAQUE}


async def test_what_is_not_understood_and_not_confirmed_is_not_called_whole(tmp_path: Path) -> None:
    async with passing_on(tmp_path) as (it, destination):
        await send(it.source, OPAQUE[8:])
        it.source.shutdown(socket.SHUT_WR)
        assert await rest(destination) == (OPAQUE, "end of file")
        destination.close()
        assert await rest(it.source) == (b"", "end of file")
        report = await it.report()
    assert (report.exit_code, report.complete) == (ExitCode.REFUSED, False)
    assert "not known to be all" in report.summary()
    assert it.left() == {"out.partial": OPAQUE}


async def test_a_full_disk_does_not_end_a_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch)
    async with passing_on(tmp_path) as (it, destination):
        await send(it.source, STREAM[8:])
        assert await receive(destination, len(STREAM)) == STREAM
        await send(destination, SHUT_OK)
        destination.close()
        assert await rest(it.source) == (SHUT_OK, "end of file")
        it.source.close()
        report = await it.report()
    assert (report.exit_code, report.complete, report.confirmed) == (ExitCode.FAILED, False, True)
    assert "No space left on device; the destination has the guest" in report.summary()
    assert list(it.left()) == ["out.partial"]


async def test_a_destination_that_cannot_be_reached(tmp_path: Path) -> None:
    with trio.fail_after(30), await listen() as front, await listen() as back:
        port = back.getsockname()[1]
        back.close()
        with await connect(front.getsockname()) as source:
            accepted, _ = await front.accept()
            config = RecordConfig(TcpAddress("127.0.0.1", port))
            recorder = Recorder(config, RecordingFile(str(tmp_path / "out")))
            await recorder.run(SocketConnection("source", accepted), STREAM[:1000])
            assert await rest(source) == (b"", "reset")
    report = recorder.report()
    assert report.exit_code is ExitCode.FAILED
    assert "cannot be reached" in report.summary()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("onward", [False, True])
async def test_a_recording_that_is_stopped_resets_its_peers(tmp_path: Path, onward: bool) -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(30))
        front, back = stack.enter_context(await listen()), stack.enter_context(await listen())
        source = stack.enter_context(await connect(front.getsockname()))
        accepted, _ = await front.accept()
        address = TcpAddress("127.0.0.1", back.getsockname()[1]) if onward else None
        recorder = Recorder(RecordConfig(address), RecordingFile(str(tmp_path / "out")))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run, SocketConnection("source", accepted), STREAM[:8])
            await send(source, STREAM[8:-1])
            while recorder.length < len(STREAM) - 1:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert (await rest(source))[1] == "reset"
    report = recorder.report()
    assert report.exit_code is ExitCode.MALFORMED
    assert report.summary().endswith(": stopped")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out.partial": STREAM[:-1]}
