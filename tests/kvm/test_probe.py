"""`host probe`, run inside a host, agrees with what `host learn` makes of a stream recorded on it."""

from __future__ import annotations

import io
import platform
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from proxy.host_file import load_profile
from tests.kvm.helpers import learn
from tests.lab.proxy import vmstate_proxy

if TYPE_CHECKING:
    from tests.lab.host import Host
    from tests.lab.pool import Lab

ROOT = Path(__file__).parents[2]


def bundle() -> bytes:
    """Pack what the probe needs beside Python itself: this project and click."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for folder in (ROOT / "proxy", ROOT / "formats", Path(click.__file__).parent):
            archive.add(folder, folder.name, filter=lambda info: None if "__pycache__" in info.name else info)
    return packed.getvalue()


async def probe(host: Host, *options: str) -> bytes:
    await host.put("/tmp/bundle.tar", bundle())
    words = " ".join(options)
    await host.run(
        f"mkdir -p /tmp/probe && cd /tmp/probe && tar xf /tmp/bundle.tar && "
        f"python3 -m proxy host probe -o /tmp/host.toml {words}",
        limit=120,
    )
    return await host.get("/tmp/host.toml")


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
