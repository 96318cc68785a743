"""Looking at a real QEMU that waits for a migration."""

from __future__ import annotations

from formats.arm.vcpu_features import VcpuFeature
from proxy.hosts.started_qemu import look_at
from tests.lab.vm import running_vm


async def test_who_listens_is_found() -> None:
    async with running_vm(name="waiting", cpu="max,pmu=off", incoming="tcp:127.0.0.1:0") as vm:
        port = await vm.incoming_port()
        found = look_at("127.0.0.1", port)
        assert found is not None
        assert (found.pid, found.cpu) == (vm.pid, "max,pmu=off")
        assert found.off == {VcpuFeature.PMU_V3}
    assert look_at("127.0.0.1", port) is None
