"""The lab itself: guests count, migrations arrive or are refused as QEMU does, taps record what passed."""

from __future__ import annotations

import os
import signal
import struct
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.lab.guest import E1000_ARGS, HOSTILE_PAYLOAD_LIMIT, counter_guest, hostile_guest
from tests.lab.process import MissingQemuError, Process
from tests.lab.qmp import QmpError
from tests.lab.tap import Ending, open_tap
from tests.lab.vm import VmExitedError, running_vm, wire_uri

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.vm import Vm

A57_MIDR = 0x411F_D070  # r1p0


async def test_guest_counts() -> None:
    async with running_vm(guest=counter_guest()) as vm:
        first = await vm.wait_counter_moves()
        assert await vm.wait_counter_moves() > first
        assert await vm.midr() == A57_MIDR
        assert await vm.status() == "running"
        assert set(vm.serial_text()) == {"."}


async def test_paused_guest_waits_for_cont() -> None:
    async with running_vm(guest=counter_guest(), paused=True) as vm:
        assert await vm.status() == "prelaunch"
        assert await vm.counter() == 0
        await vm.qmp("cont")
        await vm.wait_counter_moves()


@pytest.mark.parametrize("smp", [1, 2])
async def test_migration_arrives_and_the_counter_goes_on(smp: int) -> None:
    async with (
        running_vm(name="source", smp=smp, guest=counter_guest(touch_pages=1000)) as source,
        running_vm(name="destination", smp=smp, incoming="defer") as destination,
    ):
        await source.wait_counter_moves()
        await destination.listen()
        await source.migrate(wire_uri(await destination.incoming_port()))
        assert (await source.wait_migration()).status == "completed"
        left = await source.counter()
        assert await destination.wait_counter_moves() > left
        assert await source.status() == "postmigrate"


async def test_other_cpu_is_refused_and_the_source_keeps_its_guest() -> None:
    async with (
        running_vm(name="source", guest=counter_guest()) as source,
        running_vm(name="destination", cpu="cortex-a72", incoming="tcp:127.0.0.1:0") as destination,
    ):
        await source.wait_counter_moves()
        await source.migrate(wire_uri(await destination.incoming_port()))
        assert (await source.wait_migration()).status == "failed"
        assert await destination.wait_exit() == 1
        assert "for instance 0x0 of device 'cpu'" in destination.stderr_text()
        with pytest.raises(VmExitedError, match="device 'cpu'"):
            await destination.status()
        await source.wait_counter_moves()
        assert await source.status() == "running"


async def test_without_return_path_the_source_does_not_hear_the_refusal() -> None:
    async with (
        running_vm(name="source", guest=counter_guest()) as source,
        running_vm(name="destination", cpu="cortex-a72", incoming="tcp:127.0.0.1:0") as destination,
    ):
        await source.wait_counter_moves()
        await source.migrate(wire_uri(await destination.incoming_port()), return_path=False)
        assert (await source.wait_migration()).status == "completed"
        assert await destination.wait_exit() == 1


async def test_tap_records_both_directions(tmp_path: Path) -> None:
    async with (
        running_vm(name="source", guest=counter_guest(touch_pages=1000)) as source,
        running_vm(name="destination", incoming="tcp:127.0.0.1:0") as destination,
        open_tap(await destination.incoming_port(), tmp_path) as tap,
    ):
        await source.wait_counter_moves()
        await source.migrate(tap.uri)
        assert (await source.wait_migration()).status == "completed"
        left = await source.counter()
        assert await destination.wait_counter_moves() > left
        [recording] = tap.recordings
        assert await recording.wait() is Ending.CLOSED
        stream = recording.forward.read_bytes()
        assert stream.startswith(struct.pack(">4sI", b"QEVM", 3))
        assert len(stream) > 1000 * 4104
        shut_without_error = struct.pack(">HHI", 1, 4, 0)
        assert recording.backward.read_bytes().endswith(shut_without_error)


async def test_destination_killed_on_the_way_leaves_the_guest_to_the_source(tmp_path: Path) -> None:
    async with (
        running_vm(name="source", guest=counter_guest(touch_pages=10_000)) as source,
        running_vm(name="destination", incoming="tcp:127.0.0.1:0") as destination,
        open_tap(await destination.incoming_port(), tmp_path) as tap,
    ):
        await source.wait_counter_moves()
        await source.migrate(tap.uri, parameters={"max-bandwidth": 8 << 20})
        recording = await tap.wait_forwarded(1 << 20)
        await destination.kill()
        assert destination.returncode == -9
        # The kernel ends a killed process's connection with a plain FIN if it had read all that came, else with RST.
        assert await recording.wait() in {Ending.CLOSED, Ending.RESET}
        assert (await source.wait_migration()).status == "failed"
        await source.wait_counter_moves()


async def test_tap_without_a_target_resets_the_source(tmp_path: Path) -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))  # bound, not listening: the port refuses
        async with (
            running_vm(name="source", guest=counter_guest()) as source,
            open_tap(unused.getsockname()[1], tmp_path) as tap,
        ):
            await source.migrate(tap.uri)
            assert (await source.wait_migration()).status == "failed"
            assert await tap.recordings[0].wait() is Ending.UNREACHABLE
            await source.wait_counter_moves()


async def test_hostile_payload_is_contiguous_in_the_device_state(tmp_path: Path) -> None:
    payload = os.urandom(HOSTILE_PAYLOAD_LIMIT)
    stream = tmp_path / "stream"
    async with (
        running_vm(name="source", guest=hostile_guest(payload), extra=E1000_ARGS) as source,
        running_vm(name="destination", extra=E1000_ARGS, incoming="defer") as destination,
    ):
        await source.wait_counter_moves()
        await source.migrate(f"exec:cat > '{stream}'", return_path=False)
        assert (await source.wait_migration()).status == "completed"
        data = stream.read_bytes()
        assert data.count(payload) == 1
        assert data.index(b"e1000/full_mac_state") < data.index(payload)
        await destination.listen(f"exec:cat '{stream}'")
        await destination.wait_counter_moves()


async def test_refused_command_says_why() -> None:
    async with running_vm() as vm:
        with pytest.raises(QmpError) as caught:
            await vm.qmp("migrate", uri="nonsense")
        assert caught.value.error_class == "GenericError"
        assert await vm.status() == "running"


async def test_refused_arguments_say_why() -> None:
    with pytest.raises(VmExitedError, match="unsupported machine type"):
        async with running_vm(machine="no-such-machine"):
            pytest.fail("QEMU started")


async def test_missing_qemu_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingQemuError, match="apt-get install qemu-system-arm"):
        async with running_vm():
            pytest.fail("QEMU started")


async def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    vms: list[Vm] = []

    async def fail_while_qemu_runs() -> None:
        async with running_vm() as vm:
            vms.append(vm)
            assert len(os.listdir(tmp_path)) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_while_qemu_runs()
    assert vms[0].exited()
    assert not os.listdir(tmp_path)


async def test_qemu_dies_with_a_killed_test(
    monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    output = tmp_path / "output"
    program = """
import trio
from tests.lab.vm import running_vm
async def main():
    async with running_vm() as vm:
        print(vm.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    test = Process([sys.executable, "-c", program], output)
    try:
        with trio.fail_after(10):
            while True:
                text = output.read_text()
                if text.endswith("\n"):
                    break
                await trio.sleep(0.01)
            qemu = os.pidfd_open(int(text))
            try:
                test.send_signal(signal.SIGKILL)
                await trio.lowlevel.wait_readable(qemu)
            finally:
                os.close(qemu)
    finally:
        test.close()
