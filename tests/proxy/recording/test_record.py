"""`record`: whom it listens to, how signals end it, and its command line."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from proxy.errors import ExitCode
from proxy.net.address import parse_address
from proxy.recording.record import record
from proxy.recording.recorder import RecordConfig
from proxy.recording.recording_file import RecordingFile
from tests.lab.proxy import vmstate_proxy
from tests.proxy.helpers import PONG, SHUT_FAILED
from tests.proxy.live.test_session import connect, receive, rest, send
from tests.proxy.recording.record_streams import STREAM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.recording.record_report import RecordReport

Socket = trio.socket.SocketType


@dataclass
class Listening:
    """`record` under way."""

    said: list[str] = field(default_factory=list)
    reports: list[RecordReport] = field(default_factory=list)

    async def connect(self) -> Socket:
        return await connect(("127.0.0.1", int(self.said[0].split(",")[0].rsplit(":", 1)[1])))

    async def wait_said(self, text: str) -> None:
        while not any(text in line for line in self.said):
            await trio.sleep(0.005)


@asynccontextmanager
async def recorder_listening(path: Path) -> AsyncIterator[Listening]:
    it = Listening()

    async def run() -> None:
        it.reports.append(
            await record(parse_address("tcp::0"), RecordConfig(), RecordingFile(str(path)), it.said.append)
        )

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await it.wait_said("listening on tcp:127.0.0.1:")
            yield it


async def test_the_first_to_speak_is_recorded(tmp_path: Path) -> None:
    async with recorder_listening(tmp_path / "out") as it:
        with await it.connect() as silent, await it.connect() as passing:
            passing.close()
            await it.wait_said("left without a word")
            with await it.connect() as source:
                await send(source, STREAM[:500])
                await it.wait_said("recording what tcp:127.0.0.1:")
                assert (await rest(silent))[1] == "reset"
                with pytest.raises(ConnectionRefusedError):
                    await it.connect()
                await send(source, STREAM[500:])
                assert await rest(source) == (PONG + SHUT_FAILED, "end of file")
    assert it.reports[0].exit_code is ExitCode.OK
    assert (tmp_path / "out").read_bytes() == STREAM
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600, "it holds the guest's memory"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_waiting(tmp_path: Path, number: signal.Signals) -> None:
    async with recorder_listening(tmp_path / "out") as it:
        with await it.connect() as silent:
            signal.raise_signal(number)
            assert (await rest(silent))[1] == "reset"
    assert (it.reports[0].exit_code, it.reports[0].summary()) == (ExitCode.FAILED, "no migration came")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("times", [1, 2])
async def test_a_recording_outlives_the_first_signal_not_the_second(tmp_path: Path, times: int) -> None:
    async with recorder_listening(tmp_path / "out") as it:
        with await it.connect() as source:
            await send(source, STREAM[:1000])
            assert await receive(source, len(PONG)) == PONG
            signal.raise_signal(signal.SIGTERM)
            await it.wait_said("SIGTERM: the recording goes on to its end")
            if times == 2:
                signal.raise_signal(signal.SIGTERM)
                assert (await rest(source))[1] == "reset"
            else:
                await send(source, STREAM[1000:])
                assert await rest(source) == (SHUT_FAILED, "end of file")
    assert it.reports[0].exit_code is (ExitCode.OK if times == 1 else ExitCode.MALFORMED)
    assert [path.name for path in tmp_path.iterdir()] == ["out" if times == 1 else "out.partial"]


# --- the command


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["out"], "--listen"),
        (["--listen", "tcp::0"], "OUT"),
        (["--listen", "udp:x", "out"], "write tcp:HOST:PORT"),
        (["--listen", "tcp::0", "--connect", "x", "out"], "write tcp:HOST:PORT"),
        (["--listen", "tcp::0", "out.zst"], ".xz or .gz"),
        (["--listen", "tcp::0", "-", "--json"], "cannot both be standard output"),
    ],
)
async def test_a_wrong_command_line_is_2(args: list[str], says: str, tmp_path: Path) -> None:
    places = [str(tmp_path / arg) if arg.startswith("out") else arg for arg in args]
    code, output = await vmstate_proxy("record", *places)
    assert code == ExitCode.USAGE
    assert says in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
