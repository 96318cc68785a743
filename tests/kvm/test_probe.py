"""`host probe`, run inside a host, agrees with what `host learn` makes of a stream recorded on it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from proxy.host_file import load_profile
from tests.kvm.helpers import learn
from tests.lab.host_proxy import vmstate_proxy_in
from tests.lab.proxy import vmstate_proxy

if TYPE_CHECKING:
    from tests.lab.host import Host
    from tests.lab.pool import Lab


async def probe(host: Host, *options: str) -> bytes:
    completed = await vmstate_proxy_in(host, "host", "probe", "-o", "-", *options)
    return completed.output


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
async def test_probe_and_learn_agree(lab: Lab, tmp_path: Path, suite: str) -> None:
    host = await lab.host(cpu="cortex-a57,midr=0x411fd073", suite=suite)
    path = tmp_path / "probed.toml"
    path.write_bytes(await probe(host))
    probed = load_profile(path)
    learned = load_profile(Path(await learn(tmp_path, host)))
    # Counters and timers differ from reading to reading; a profile has no values of theirs, for they are the guest's.
    assert probed.values == learned.values
    assert probed.others == learned.others
    assert probed.midr == 0x411FD073
    assert probed.kernel is not None
    assert probed.kernel.startswith({"bookworm": "Linux 6.1.", "trixie": "Linux 6.12."}[suite])
    assert probed.vcpu_features == ("PMU_V3", "PSCI_0_2")
    assert probed.timer_frequency == 62_500_000
    # KVM_ARM_GET_REG_WRITABLE_MASKS came with Linux 6.7.
    assert (probed.writable is None) == (suite == "bookworm")


async def test_a_machine_without_arm64_kvm_says_so() -> None:
    if platform.machine() in ("aarch64", "arm64"):
        pytest.fail("this test is written for other machines than arm64 ones")
    code, output = await vmstate_proxy("host", "probe", "-o", "-")
    assert code == 1
    assert "only an arm64 host's KVM" in output
