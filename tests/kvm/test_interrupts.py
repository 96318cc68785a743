"""Interrupt controllers on real KVM: QEMU aborts where KVM refuses one, and the proxy refuses it before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from formats.arm.gic import GITS_IIDR, ICC_CTLR_EL1
from formats.vmstate.interrupts import interrupts_of
from proxy.hosts.interrupts import HostInterrupts
from proxy.hosts.profile_file import load_profile
from proxy.hosts.profile_text import write_profile
from tests.kvm.helpers import THOROUGH, probe, record
from tests.lab.guest import counter_guest
from tests.lab.host import A57_R1P3
from tests.lab.proxy import running_proxy, vmstate_proxy
from tests.lab.vm import wire_uri
from tests.proxy.helpers import device_state

if TYPE_CHECKING:
    from tests.lab.host import Host
    from tests.lab.pool import Lab

OWN = 0x8C00
IIDR = 0x4B00_043B
RECORDED: dict[Host, tuple[bytes, str]] = {}
"""A guest's stream and the host's profile: made once."""
CPU_INTERFACE = "Group 6 attr 0x000000000000c664"
REFUSED = [
    pytest.param(ICC_CTLR_EL1, OWN + 0x100, CPU_INTERFACE, "PRIbits 5 -> 4", id="PRIbits"),
    pytest.param(ICC_CTLR_EL1, OWN + 0x800, CPU_INTERFACE, "IDbits 2 -> 1", id="IDbits", marks=THOROUGH),
    pytest.param(ICC_CTLR_EL1, OWN ^ 0x8000, CPU_INTERFACE, "A3V 0 -> 1", id="A3V", marks=THOROUGH),
    pytest.param(ICC_CTLR_EL1, OWN ^ 0x4000, CPU_INTERFACE, "SEIS 1 -> 0", id="SEIS", marks=THOROUGH),
    pytest.param(GITS_IIDR, IIDR | 0x1000, "Group 8 attr 0x0000000000000004", "Revision 1", id="ITS"),
]


def patched(stream: bytes, register: int, value: int) -> bytes:
    state = device_state(stream)
    held = bytearray(state.held)
    interrupts_of(structs.replace(state, held=held))[0][register].replace(value)
    return stream[: state.offset] + bytes(held) + stream[state.offset + len(held) :]


@pytest.mark.parametrize(("register", "value", "qemu_says", "proxy_says"), REFUSED)
async def test_qemu_aborts_and_the_proxy_refuses(
    lab: Lab, tmp_path: Path, register: int, value: int, qemu_says: str, proxy_says: str
) -> None:
    host = await lab.host(suite="trixie", cpu=A57_R1P3)
    if host not in RECORDED:
        RECORDED[host] = await record(host), Path(await probe(tmp_path, host)).read_text()
    recorded, profile = RECORDED[host]
    stream = patched(recorded, register, value)
    await host.put("/tmp/loaded.stream", stream)
    async with host.guest(name="loading", incoming="defer", paused=True) as vm:
        await vm.qmp("migrate-incoming", uri="exec:cat /tmp/loaded.stream")
        assert await vm.wait_exit() not in (0, 1)
        assert qemu_says in vm.stderr_text()
    (tmp_path / "patched.stream").write_bytes(stream)
    (tmp_path / "host.toml").write_text(profile)
    code, output = await vmstate_proxy("check", str(tmp_path / "patched.stream"), "--host", str(tmp_path / "host.toml"))
    assert (code, proxy_says in output) == (4, True), output


async def test_the_sources_guest_runs_on(lab: Lab, tmp_path: Path) -> None:
    """A first proxy makes the source's GIC another one; a second, which knows the destination, refuses that."""
    host = await lab.host(suite="trixie", cpu=A57_R1P3)
    profile = await probe(tmp_path, host)
    other = tmp_path / "other.toml"
    known = load_profile(tmp_path / profile)
    assert known.interrupts is not None
    assert (known.interrupts.icc_ctlr, known.interrupts.its_revisions) == (OWN, (0,))
    better = HostInterrupts(known.interrupts.gic_versions, OWN + 0x100, (), (0,))
    other.write_text(write_profile(replace(known, interrupts=better)))
    making = ("--host", str(other), "--allow-register", "ICC_CTLR_EL1", "--once")
    async with (
        host.guest(name="source", image=counter_guest()) as source,
        host.guest(name="destination", incoming="tcp:127.0.0.1:0") as destination,
    ):
        await source.wait_counter_moves()
        async with (
            running_proxy(wire_uri(await destination.incoming_port()), "--host", profile, "--once") as judging,
            running_proxy(judging.uri, *making) as first,
        ):
            await source.migrate(first.uri)
            assert (await source.wait_migration()).status == "failed"
            await judging.wait_exit()
            (report,) = judging.reports()
        assert report["outcome"] == "refused"
        assert "section 'arm_gicv3' instance 0: ICC_CTLR_EL1: PRIbits 5 -> 4" in report["reason"]
        await source.wait_counter_moves()
        assert await source.status() == "running"
    async with (
        host.guest(name="source", image=counter_guest()) as source,
        host.guest(name="destination", incoming="tcp:127.0.0.1:0") as destination,
    ):
        await source.wait_counter_moves()
        async with running_proxy(wire_uri(await destination.incoming_port()), *making) as first:
            await source.migrate(first.uri)
            assert await destination.wait_exit() not in (0, 1)
            assert "Group 6 attr 0x000000000000c664" in destination.stderr_text()
