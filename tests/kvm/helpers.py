"""What the KVM tests share: profiles of hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from benchmarks.switchover import MIDR, grown
from tests.kvm import trial_counts
from tests.lab.host_proxy import run_python_in, vmstate_proxy_in
from tests.lab.proxy import vmstate_proxy

if TYPE_CHECKING:
    from tests.lab.host import Host


THOROUGH: Final = pytest.mark.thorough
"""One more of a kind that `make test` has: each takes half a minute, and `make kvm` has them all."""


async def record(host: Host, *, smp: int = 1) -> bytes:
    """Record the stream of a paused guest on a host's KVM."""
    path = "/tmp/recorded.stream"
    async with host.guest(name="recorded", smp=smp, paused=True) as vm:
        await vm.migrate(f"exec:cat > {path}", return_path=False)
        assert (await vm.wait_migration()).status == "completed"
    return await host.get(path)


async def learn(directory: Path, host: Host) -> str:
    """Learn a host's profile from a paused guest on it, as an operator would, and return its path."""
    stream, profile = directory / f"{host}.stream", directory / f"{host}.toml"
    stream.write_bytes(await record(host))
    code, output = await vmstate_proxy("host", "learn", str(stream), "-o", str(profile), "--force")
    assert code == 0, output
    return str(profile)


async def probe(directory: Path, host: Host) -> str:
    """Probe a host, as an operator would, and return its profile's path."""
    profile = directory / f"{host}-probed.toml"
    profile.write_bytes((await vmstate_proxy_in(host, "host", "probe", "-o", "-")).output)
    return str(profile)


async def count_trial(host: Host, vcpus: int) -> dict[str, Any]:
    """Count what a host's KVM is asked, and how often the device state is gone over, while a guest stands."""
    switchover = grown(vcpus, vmdesc=True)
    await host.put("/tmp/trial_counts.py", Path(trial_counts.__file__).read_bytes())
    await host.put("/tmp/before", switchover.before)
    await host.put("/tmp/state", switchover.state)
    completed = await run_python_in(host, "/tmp/trial_counts.py", "/tmp/before", "/tmp/state", MIDR)
    counted: dict[str, Any] = json.loads(completed.stdout)
    return counted
