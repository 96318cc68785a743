"""Guests go from real QEMUs to files, and from files to real QEMUs."""

from __future__ import annotations

import json
import lzma
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lab.guest import counter_guest
from tests.lab.pki import Authority
from tests.lab.process import Process
from tests.lab.proxy import running_proxy, vmstate_proxy
from tests.lab.qmp import LabError
from tests.lab.tap import open_tap
from tests.lab.vm import running_vm, wire_uri
from tests.live.helpers import A57_TO_A72, learn, record
from tests.live.test_tls import credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_ROOT = Path(__file__).parents[2]
_LISTENING = re.compile(r"listening on tcp:(\S+):(\d+), ")
_LIMIT = 90.0
"""Seconds; the machine may have other things to do."""


class Recorder:
    """One running `vmstate-proxy record`."""

    def __init__(self, process: Process, output: Path) -> None:
        self._process = process
        self._output = output
        self.uri = ""

    def text(self) -> str:
        """What it wrote so far, on either output."""
        return self._output.read_text()

    async def wait_listening(self) -> None:
        with trio.move_on_after(_LIMIT):
            while self._process.returncode is None:
                if match := _LISTENING.search(self.text()):
                    self.uri = f"tcp:{match[1]}:{match[2]}"
                    return
                await trio.sleep(0.02)
        raise LabError(f"the recorder does not listen: {self.text()}")

    async def wait_exit(self) -> int:
        with trio.move_on_after(_LIMIT):
            return await self._process.wait()
        raise LabError(f"the recorder still runs: {self.text()}")


@asynccontextmanager
async def recording(out: Path, *options: str) -> AsyncIterator[Recorder]:
    """Run a recorder for the length of an `async with`."""
    output = out.with_name(f"{out.name}.output")
    command = [sys.executable, "-m", "proxy", "record", "--listen", "tcp:127.0.0.1:0", *options, str(out)]
    process = Process(command, output, cwd=_ROOT)
    try:
        recorder = Recorder(process, output)
        await recorder.wait_listening()
        yield recorder
    finally:
        process.close()


async def record_alone(out: Path, *, touch_pages: int = 3000) -> int:
    """Record a running guest, which then runs on; return its counter at the time."""
    async with (
        running_vm(name="source", guest=counter_guest(touch_pages=touch_pages)) as source,
        recording(out) as recorder,
    ):
        counter = await source.wait_counter_moves(_LIMIT)
        await source.migrate(recorder.uri)
        assert (await source.wait_migration(_LIMIT)).status == "failed"
        assert await recorder.wait_exit() == 0, recorder.text()
        assert "the source was told to keep its guest" in recorder.text()
        assert await source.status() == "running"
        await source.wait_counter_moves(_LIMIT)
        return counter


async def test_a_recorded_guest_runs_on_at_its_source_and_again_from_the_file(tmp_path: Path) -> None:
    out, moved = tmp_path / "guest.stream", tmp_path / "moved.stream"
    profile = await learn(tmp_path, "cortex-a72")
    counter = await record_alone(out)
    assert not Path(f"{out}.partial").exists()
    code, output = await vmstate_proxy(
        "rewrite", str(out), str(moved), "--host", profile, *A57_TO_A72, "--allow-midr", "none"
    )
    assert code == 0, output
    async with running_vm(name="destination", cpu="cortex-a72", incoming="tcp:127.0.0.1:0") as destination:
        code, output = await vmstate_proxy(
            "replay", str(moved), wire_uri(await destination.incoming_port()), "--json", "--rate", "200"
        )
        assert code == 0, output
        report = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        assert (report["confirmed"], report["return_path"], report["bytes"]) == (True, True, moved.stat().st_size)
        assert report["pongs"] > 0
        assert await destination.wait_counter_moves(_LIMIT) > counter
        assert await destination.status() == "running"


async def test_a_stream_for_another_processor_is_not_taken(tmp_path: Path) -> None:
    out = tmp_path / "guest.stream"
    await record_alone(out)
    async with running_vm(name="destination", cpu="cortex-a72", incoming="tcp:127.0.0.1:0") as destination:
        code, output = await vmstate_proxy("replay", str(out), wire_uri(await destination.incoming_port()))
        assert code == 1
        (line,) = output.splitlines()
        assert "bytes" in line
        assert "the destination " in line
        assert line.endswith("its own log says why")
        assert await destination.wait_exit(_LIMIT) != 0
        assert "cpu" in destination.stderr_text()
        assert "." not in destination.serial_text()


async def test_a_migration_is_recorded_byte_for_byte_while_the_guest_moves(tmp_path: Path) -> None:
    out = tmp_path / "guest.stream.xz"
    async with (
        running_vm(name="source", guest=counter_guest(touch_pages=3000)) as source,
        running_vm(name="destination", incoming="tcp:127.0.0.1:0") as destination,
        open_tap(await destination.incoming_port(), tmp_path) as after,
        recording(out, "--connect", after.uri, "--json") as recorder,
        open_tap(int(recorder.uri.rpartition(":")[2]), tmp_path) as before,
    ):
        await source.wait_counter_moves(_LIMIT)
        await source.migrate(before.uri)
        assert (await source.wait_migration(_LIMIT)).status == "completed"
        left = await source.counter()
        assert await destination.wait_counter_moves(_LIMIT) > left
        assert await recorder.wait_exit() == 0, recorder.text()
        assert "the destination has the guest" in recorder.text()
        for tap in (before, after):
            await tap.recordings[0].wait(_LIMIT)
        came, went = before.recordings[0], after.recordings[0]
        stream = came.forward.read_bytes()
        assert stream == went.forward.read_bytes() == lzma.decompress(out.read_bytes())
        assert came.backward.read_bytes() == went.backward.read_bytes()
    # What was recorded is a guest: it goes on from there once more, through the proxy.
    profile = await learn(tmp_path, "cortex-a72")
    async with (
        running_vm(name="again", cpu="cortex-a72", incoming="tcp:127.0.0.1:0") as again,
        running_proxy(
            wire_uri(await again.incoming_port()), "--host", profile, *A57_TO_A72, "--allow-midr", "none", "--once"
        ) as proxy,
    ):
        code, output = await vmstate_proxy("replay", str(out), proxy.uri)
        assert code == 0, output
        assert await again.wait_counter_moves(_LIMIT) > left
        assert await proxy.wait_exit() == 0


async def test_a_destination_that_refuses_leaves_the_recording_and_the_guest_at_its_source(tmp_path: Path) -> None:
    out = tmp_path / "guest.stream"
    async with (
        running_vm(name="source", guest=counter_guest(touch_pages=3000)) as source,
        running_vm(name="destination", cpu="cortex-a72", incoming="tcp:127.0.0.1:0") as destination,
        recording(out, "--connect", wire_uri(await destination.incoming_port())) as recorder,
    ):
        await source.wait_counter_moves(_LIMIT)
        await source.migrate(recorder.uri)
        assert (await source.wait_migration(_LIMIT)).status == "failed"
        await source.wait_counter_moves(_LIMIT)
        assert await destination.wait_exit(_LIMIT) != 0
        # The destination may have closed before the source's last bytes were written.
        assert await recorder.wait_exit() in (1, 3), recorder.text()
        assert "the destination " in recorder.text()
        assert out.exists() != Path(f"{out}.partial").exists()


async def test_a_source_without_a_return_path(tmp_path: Path) -> None:
    out = tmp_path / "guest.stream"
    async with running_vm(name="source", guest=counter_guest(touch_pages=8000)) as source:
        await source.wait_counter_moves(_LIMIT)
        async with recording(out) as recorder:
            await source.migrate(recorder.uri, return_path=False)
            assert (await source.wait_migration(_LIMIT)).status == "failed"
            assert await recorder.wait_exit() == 4
            assert "--allow-no-return-path" in recorder.text()
        await source.wait_counter_moves(_LIMIT)
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".output"] == []
        async with recording(out, "--allow-no-return-path") as recorder:
            await source.migrate(recorder.uri, return_path=False)
            assert (await source.wait_migration(_LIMIT)).status == "completed"
            assert await recorder.wait_exit() == 0, recorder.text()
        assert await source.status() == "postmigrate"
        await source.qmp("cont")
        await source.wait_counter_moves(_LIMIT)
    async with running_vm(name="destination", incoming="tcp:127.0.0.1:0") as destination:
        code, output = await vmstate_proxy("replay", str(out), wire_uri(await destination.incoming_port()))
        assert code == 0, output
        assert "not confirmed" in output
        await destination.wait_counter_moves(_LIMIT)


async def test_a_source_that_would_go_over_to_postcopy_keeps_its_guest(tmp_path: Path) -> None:
    out = tmp_path / "guest.stream"
    async with running_vm(name="source", guest=counter_guest(touch_pages=8000)) as source, recording(out) as recorder:
        await source.wait_counter_moves(_LIMIT)
        await source.migrate(recorder.uri, capabilities={"postcopy-ram": True})
        assert (await source.wait_migration(_LIMIT)).status == "failed"
        assert await recorder.wait_exit() == 4, recorder.text()
        assert "may go over to postcopy" in recorder.text()
        await source.wait_counter_moves(_LIMIT)


async def test_a_source_without_vmdesc(tmp_path: Path) -> None:
    out, machine = tmp_path / "guest.stream", "virt-7.2,suppress-vmdesc=on"
    async with running_vm(name="source", machine=machine, guest=counter_guest()) as source, recording(out) as recorder:
        await source.wait_counter_moves(_LIMIT)
        await source.migrate(recorder.uri)
        assert (await source.wait_migration(_LIMIT)).status == "failed"
        assert await recorder.wait_exit() == 0, recorder.text()
        await source.wait_counter_moves(_LIMIT)
    async with running_vm(name="destination", machine=machine, incoming="tcp:127.0.0.1:0") as destination:
        code, output = await vmstate_proxy("replay", str(out), wire_uri(await destination.incoming_port()))
        assert code == 0, output
        await destination.wait_counter_moves(_LIMIT)


async def test_a_migration_that_is_cancelled_leaves_a_partial_recording(tmp_path: Path) -> None:
    out = tmp_path / "guest.stream"
    partial = Path(f"{out}.partial")
    async with running_vm(name="source", guest=counter_guest(touch_pages=8000)) as source, recording(out) as recorder:
        await source.wait_counter_moves(_LIMIT)
        await source.migrate(recorder.uri, parameters={"max-bandwidth": 4 << 20})
        with trio.fail_after(_LIMIT):
            while partial.stat().st_size < 1 << 20:
                await trio.sleep(0.02)
        await source.qmp("migrate_cancel")
        assert (await source.wait_migration(_LIMIT)).status == "cancelled"
        assert await recorder.wait_exit() == 3, recorder.text()
        assert f"{partial}: cut at offset 0x" in recorder.text()
        assert "section 'ram' instance 0" in recorder.text()
        await source.wait_counter_moves(_LIMIT)
    assert not out.exists()
    code, output = await vmstate_proxy("inspect", str(partial))
    assert code == 3
    assert "ram" in output
    async with running_vm(name="destination", incoming="tcp:127.0.0.1:0") as destination:
        code, output = await vmstate_proxy("replay", str(partial), wire_uri(await destination.incoming_port()))
        assert code == 3, output
        assert await destination.wait_exit(_LIMIT) != 0


async def test_a_stream_that_a_monitor_saved_is_replayed(tmp_path: Path) -> None:
    """`migrate exec:cat` opens no return path, so nobody confirms."""
    saved = tmp_path / "saved.stream"
    await record(saved, "cortex-a57")
    async with running_vm(name="destination", incoming="tcp:127.0.0.1:0", paused=True) as destination:
        code, output = await vmstate_proxy("replay", str(saved), wire_uri(await destination.incoming_port()))
        assert code == 0, output
        assert "not confirmed" in output
        with trio.fail_after(_LIMIT):
            while await destination.status() == "inmigrate":
                await trio.sleep(0.02)


async def test_a_recording_over_tls_is_replayed_over_tls(tmp_path: Path) -> None:
    out, pki = tmp_path / "guest.stream", Authority().folder(tmp_path / "pki", "server", "client")
    shown = credentials(pki, "client"), credentials(pki, "server")
    async with (
        running_vm(name="source", guest=counter_guest(), extra=shown[0]) as source,
        recording(out, "--listen-tls", pki) as recorder,
    ):
        counter = await source.wait_counter_moves(_LIMIT)
        await source.migrate(recorder.uri, parameters={"tls-creds": "tls0", "tls-hostname": "127.0.0.1"})
        assert (await source.wait_migration(_LIMIT)).status == "failed"
        assert await recorder.wait_exit() == 0, recorder.text()
    async with running_vm(name="destination", incoming="defer", extra=shown[1]) as destination:
        await destination.listen(parameters={"tls-creds": "tls0"})
        uri = wire_uri(await destination.incoming_port())
        stranger = Authority().folder(tmp_path / "other", "client")
        code, said = await vmstate_proxy("replay", str(out), uri, "--tls", stranger)
        assert (code, "its certificate is not taken" in said) == (1, True), said
        code, said = await vmstate_proxy("replay", str(out), uri, "--tls", pki)
        assert code == 0, said
        assert await destination.wait_counter_moves(_LIMIT) >= counter


async def test_a_migration_between_two_qemus_that_speak_tls_is_recorded(tmp_path: Path) -> None:
    out, pki = tmp_path / "guest.stream", Authority().folder(tmp_path / "pki", "server", "client")
    async with (
        running_vm(name="source", guest=counter_guest(), extra=credentials(pki, "client")) as source,
        running_vm(name="destination", incoming="defer", extra=credentials(pki, "server")) as destination,
    ):
        await destination.listen(parameters={"tls-creds": "tls0"})
        async with recording(out, "--connect", wire_uri(await destination.incoming_port()), "--tls", pki) as recorder:
            counter = await source.wait_counter_moves(_LIMIT)
            await source.migrate(recorder.uri, parameters={"tls-creds": "tls0", "tls-hostname": "127.0.0.1"})
            assert (await source.wait_migration(_LIMIT)).status == "completed", recorder.text()
            assert await recorder.wait_exit() == 0, recorder.text()
        assert await destination.wait_counter_moves(_LIMIT) >= counter
    assert (await vmstate_proxy("inspect", str(out)))[0] == 0
