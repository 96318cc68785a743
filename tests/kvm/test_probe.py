"""`host probe`, run inside a host, agrees with what `host learn` makes of a stream recorded on it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from formats.arm.id_fields import differing
from formats.arm.sysreg import parse_register
from formats.arm.vcpu_features import VcpuFeature
from proxy.hosts.profile_file import load_profile
from proxy.hosts.script.assembly import probe_script
from tests.kvm.helpers import THOROUGH, learn
from tests.lab.host_proxy import vmstate_proxy_in
from tests.lab.proxy import vmstate_proxy

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile
    from tests.lab.host import Host
    from tests.lab.pool import Lab


async def probe(host: Host, *options: str) -> bytes:
    completed = await vmstate_proxy_in(host, "host", "probe", "-o", "-", *options)
    return completed.output


@pytest.mark.parametrize("suite", [pytest.param("bookworm", marks=THOROUGH), "trixie"])
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
    assert probed.qemu is not None
    assert probed.qemu.startswith({"bookworm": "7.2.", "trixie": "10.0."}[suite])
    assert probed.kinds == [{VcpuFeature.PMU_V3}, set()]
    assert probed.taken is not None
    dfr0 = parse_register("ID_AA64DFR0_EL1")
    # ID registers can be written since Linux 6.5, CSV2 and CSV3 since 5.10 and 5.11.
    assert (dfr0 in probed.taken) == (suite == "trixie")
    assert str(probed.taken[parse_register("ID_AA64PFR0_EL1")][-1]) == "CSV3 0"


@pytest.mark.parametrize("suite", [pytest.param("bullseye", marks=THOROUGH), "trixie"])
async def test_the_script_answers_as_host_probe(lab: Lab, tmp_path: Path, suite: str) -> None:
    """On trixie to the byte; bullseye's Python 3.9 runs the script alone, and is held against a recorded stream."""
    host = await lab.host(cpu="cortex-a57,midr=0x411fd073", suite=suite)
    await host.put("/tmp/probe.py", probe_script().encode())
    printed = (await host.run(["python3", "/tmp/probe.py"], limit=60)).stdout
    if suite == "trixie":
        assert printed.encode() == await probe(host)
        return
    path = tmp_path / "probed.toml"
    path.write_text(printed)
    probed = load_profile(path)
    learned = load_profile(Path(await learn(tmp_path, host)))
    assert (probed.values, probed.others) == (learned.values, learned.others)
    assert probed.kernel is not None
    assert probed.kernel.startswith("Linux 5.10.")
    assert probed.qemu is not None
    assert probed.qemu.startswith("5.2.")
    assert probed.taken is not None
    assert (probed.all_kinds, probed.timer_frequency) == (True, 62_500_000)


async def test_the_vcpus_features_can_be_chosen(lab: Lab, tmp_path: Path) -> None:
    """On a processor with SVE and pointer authentication; with 64 KiB of `cpu/sve` in the stream."""
    host = await lab.host(cpu="max,pauth-impdef=on", suite="trixie")

    async def profile_with(*options: str) -> HostProfile:
        path = tmp_path / "probed.toml"
        path.write_bytes(await probe(host, *options))
        return load_profile(path)

    everything = await profile_with()
    learned = load_profile(Path(await learn(tmp_path, host)))
    assert (everything.values, everything.others) == (learned.values, learned.others)
    assert everything.vcpu_features == ("PMU_V3", "PSCI_0_2", "PTRAUTH_ADDRESS", "PTRAUTH_GENERIC", "SVE")
    assert everything.sve_vector_lengths is not None
    assert everything.sve_vector_lengths[0] == 16
    assert max(everything.sve_vector_lengths) == 256

    least = await profile_with("--vcpu-features", "PSCI_0_2")
    assert (least.vcpu_features, least.sve_vector_lengths) == (("PSCI_0_2",), ())
    for name in ("ZCR_EL1", "APIAKeyLo_EL1"):
        assert least.lacks(parse_register(name))
        assert not everything.lacks(parse_register(name))
    pfr0 = parse_register("ID_AA64PFR0_EL1")
    assert [field.name for field in differing(pfr0, everything.values[pfr0], least.values[pfr0])] == ["SVE"]

    failed = await vmstate_proxy_in(host, "host", "probe", "-o", "-", "--vcpu-features", "SVEE", check=False)
    assert failed.returncode == 2
    assert "there is no feature SVEE" in failed.stderr


async def test_a_machine_without_arm64_kvm_says_so() -> None:
    if platform.machine() in ("aarch64", "arm64"):
        pytest.fail("this test is written for other machines than arm64 ones")
    code, output = await vmstate_proxy("host", "probe", "-o", "-")
    assert code == 1
    assert "only an arm64 host's KVM" in output
