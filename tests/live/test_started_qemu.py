"""Looking at a real QEMU that waits for a migration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from formats.arm.vcpu_features import VcpuFeature
from proxy.hosts.qmp import QmpError, ask_qmp
from proxy.hosts.started_qemu import look_at
from tests.lab.vm import running_vm

if TYPE_CHECKING:
    from pathlib import Path


async def test_who_listens_is_found() -> None:
    async with running_vm(name="waiting", cpu="max,pmu=off", incoming="tcp:127.0.0.1:0") as vm:
        port = await vm.incoming_port()
        found = look_at("127.0.0.1", port)
        assert found is not None
        assert (found.where, found.cpu) == (f"process {vm.pid}", "max,pmu=off")
        assert found.off == {VcpuFeature.PMU_V3}
    assert look_at("127.0.0.1", port) is None


@pytest.mark.parametrize(
    ("cpu", "off"),
    [
        ("max", set()),
        ("max,sve=off", {VcpuFeature.SVE}),
        ("max,pmu=off,pauth=off", {VcpuFeature.PMU_V3, VcpuFeature.PTRAUTH_ADDRESS, VcpuFeature.PTRAUTH_GENERIC}),
    ],
)
async def test_it_is_asked_over_qmp(tmp_path: Path, cpu: str, off: set[VcpuFeature]) -> None:
    path = tmp_path / "qmp"
    extra = ("-qmp", f"unix:{path},server=on,wait=off", "-qmp", "tcp:127.0.0.1:0,server=on,wait=off")
    async with running_vm(name="asked", cpu=cpu, incoming="tcp:127.0.0.1:0", extra=extra) as vm:
        found = await trio.to_thread.run_sync(ask_qmp, str(path))
        assert found.off == off
        assert str(found).startswith(f"QMP at {path}, -cpu host")
        # Once more: the socket takes the next one.
        assert await trio.to_thread.run_sync(ask_qmp, str(path)) == found
        for described in await vm.qmp("query-chardev"):
            if described["filename"].startswith("disconnected:tcp:"):
                address = described["filename"].removeprefix("disconnected:tcp:").partition(",")[0]
                assert (await trio.to_thread.run_sync(ask_qmp, address)).off == off
                break
        else:
            pytest.fail("no TCP monitor")
    with pytest.raises(QmpError, match="cannot be asked by QMP"):
        ask_qmp(str(path))


async def test_what_is_no_qmp_monitor_is_said(tmp_path: Path) -> None:
    path = tmp_path / "monitor"
    extra = ("-monitor", f"unix:{path},server=on,wait=off")
    async with running_vm(name="for-people", extra=extra):
        with pytest.raises(QmpError, match=str(path)):
            await trio.to_thread.run_sync(ask_qmp, str(path))
