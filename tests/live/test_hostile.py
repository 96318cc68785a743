"""A guest that writes forged footers and a forged `cpu` section into a device's buffer gains nothing by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.frame.event import NEED_DATA
from formats.stream.parser import StreamParser
from formats.vmstate.device_state import DeviceState
from tests.lab.guest import E1000_ARGS, hostile_guest
from tests.lab.proxy import running_proxy
from tests.lab.tap import open_tap
from tests.lab.vm import running_vm
from tests.live.helpers import A57_TO_A72, differing_bytes, learn, record

if TYPE_CHECKING:
    from pathlib import Path

FORGED_VALUE = 0xF0F0_F0F0_F0F0_F0F0


async def forge(directory: Path, machine: str) -> bytes:
    """Make a payload for the e1000's packet buffer that ends its section, has a `cpu` section, and opens it again."""
    stream = await record(directory / "model.stream", "cortex-a57", machine=machine, extra=E1000_ARGS)
    parser = StreamParser()
    state = None
    for data in (stream, b""):
        parser.feed(data)
        while (event := parser.next_event()) is not NEED_DATA:
            if isinstance(event, DeviceState):
                state = event
    assert state is not None
    [cpu] = [section for section in state.sections if section.name == "cpu"]
    [nic] = [section for section in state.sections if section.name.endswith("e1000")]
    forged_cpu = bytearray(state.held[cpu.start : cpu.end])
    values = cpu.body - cpu.start + 568 + 4 + 258 * 8
    forged_cpu[values : values + 8] = FORGED_VALUE.to_bytes(8, "big")
    nic_footer = bytes(state.held[nic.body_end : nic.end])
    nic_header = bytes(state.held[nic.start : nic.body])
    return nic_footer + bytes(forged_cpu) + nic_header


async def test_with_vmdesc_it_is_passed_over(tmp_path: Path) -> None:
    profile = await learn(tmp_path, "cortex-a72", extra=E1000_ARGS)
    payload = await forge(tmp_path, "virt-7.2")
    async with (
        running_vm(name="source", guest=hostile_guest(payload), extra=E1000_ARGS) as source,
        running_vm(name="destination", cpu="cortex-a72", incoming="tcp:127.0.0.1:0", extra=E1000_ARGS) as destination,
        open_tap(await destination.incoming_port(), tmp_path) as after,
        running_proxy(after.uri, "--host", profile, *A57_TO_A72, "--allow-midr", "none", "--once") as proxy,
        open_tap(int(proxy.uri.rpartition(":")[2]), tmp_path) as before,
    ):
        await source.wait_counter_moves()
        await source.migrate(before.uri)
        assert (await source.wait_migration()).status == "completed"
        await destination.wait_counter_moves()
        assert await proxy.wait_exit() == 0
        [report] = proxy.reports()
        assert [change["vcpu"] for change in report["changes"]] == [0, 0]
        await after.recordings[0].wait()
        came, went = before.recordings[0].forward.read_bytes(), after.recordings[0].forward.read_bytes()
        assert went.count(payload) == 1
        [real_cpu] = [at for at in range(len(came)) if came.startswith(b"\x03cpu\0\0\0\0\0\0\0\x16", at)][:1]
        assert all(real_cpu < at < came.index(payload) for at in differing_bytes(came, went))


async def test_without_vmdesc_it_is_refused_as_ambiguous(tmp_path: Path) -> None:
    machine = "virt-7.2,suppress-vmdesc=on"
    profile = await learn(tmp_path, "cortex-a72", extra=E1000_ARGS)
    payload = await forge(tmp_path, machine)
    async with (
        running_vm(name="source", machine=machine, guest=hostile_guest(payload), extra=E1000_ARGS) as source,
        running_vm(
            name="destination", machine=machine, cpu="cortex-a72", incoming="tcp:127.0.0.1:0", extra=E1000_ARGS
        ) as destination,
        open_tap(await destination.incoming_port(), tmp_path) as after,
        running_proxy(after.uri, "--host", profile, *A57_TO_A72, "--allow-midr", "none", "--once") as proxy,
    ):
        await source.wait_counter_moves()
        await source.migrate(proxy.uri)
        assert (await source.wait_migration()).status == "failed"
        await source.wait_counter_moves()
        assert await proxy.wait_exit() == 4
        [report] = proxy.reports()
        assert "more than one way" in report["reason"]
        assert await destination.wait_exit() != 0
        assert b"cpu_common" not in after.recordings[0].forward.read_bytes()
