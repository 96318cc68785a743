"""The emulated hosts themselves: they have a real KVM, and leave nothing behind."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.kvm.helpers import THOROUGH
from tests.lab.debian import ImageError
from tests.lab.guest import counter_guest
from tests.lab.host import A57_R1P0, A57_R1P3, Host, HostError, running_host
from tests.lab.images import SUITES, host_image
from tests.lab.process import MissingQemuError
from tests.lab.remote import CommandFailedError
from tests.lab.vm import VmExitedError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.pool import Lab

# sid goes on.
VERSIONS = {
    "bullseye": ("5.10.", "version 5.2."),
    "bookworm": ("6.1.", "version 7.2."),
    "trixie": ("6.12.", "version 10.0."),
    "sid": ("", "version "),
}
MIDRS = {A57_R1P0: 0x411F_D070, A57_R1P3: 0x411F_D073}


@pytest.mark.parametrize(
    "suite", [pytest.param(suite, marks=THOROUGH if suite == "bullseye" else ()) for suite in SUITES]
)
async def test_host_has_kvm_and_what_a_probe_needs(lab: Lab, suite: str) -> None:
    host = await lab.host(suite=suite, cpu=A57_R1P3)
    kernel, emulator = VERSIONS[suite]
    assert (await host.run(["uname", "-r"])).stdout.startswith(kernel)
    assert emulator in (await host.run(["qemu-system-aarch64", "--version"])).stdout
    # bullseye's Python 3.9 has no tomllib.
    modules = "array, ctypes, fcntl, json, mmap, struct" + ("" if suite == "bullseye" else ", tomllib, pdb")
    await host.run(["python3", "-c", f"import {modules}; fcntl.ioctl(open('/dev/kvm', 'rb'), 0xAE00)"])


@pytest.mark.parametrize(
    ("suite", "cpu"),
    [
        ("bookworm", A57_R1P3),
        ("trixie", A57_R1P0),
        pytest.param("bookworm", A57_R1P0, marks=THOROUGH),
        pytest.param("trixie", A57_R1P3, marks=THOROUGH),
    ],
)
async def test_guest_on_kvm_reads_the_midr_of_its_host(lab: Lab, suite: str, cpu: str) -> None:
    host = await lab.host(suite=suite, cpu=cpu)
    async with host.guest(image=counter_guest()) as guest:
        assert (await guest.qmp("query-kvm")) == {"enabled": True, "present": True}
        first = await guest.wait_counter_moves()
        assert await guest.wait_counter_moves() > first
        assert await guest.midr() == MIDRS[cpu]
        assert set(guest.serial_text()) == {"."}
        assert guest.stderr_text() == ""


async def test_a_host_with_sve_runs_on_a_newer_emulator(lab: Lab) -> None:
    host = await lab.host(suite="trixie", cpu="neoverse-v1")
    assert "sve" in (await host.run(["grep", "Features", "/proc/cpuinfo"])).stdout
    async with host.guest(image=counter_guest()) as guest:
        await guest.wait_counter_moves()


async def test_commands_and_files(lab: Lab) -> None:
    host = await lab.host(cpu=A57_R1P3)
    completed = await host.run("echo out; echo err >&2; exit 3", check=False)
    assert (completed.stdout, completed.stderr, completed.returncode) == ("out\n", "err\n", 3)
    assert (await host.run("kill -9 $$", check=False)).returncode == -signal.SIGKILL
    assert (await host.run(["no-such-program"], check=False)).returncode == 127
    with pytest.raises(CommandFailedError, match="No such file"):
        await host.get("/no-such-file")
    data = os.urandom(1 << 20)
    await host.put("/tmp/some/where/file", data)
    assert await host.get("/tmp/some/where/file") == data
    with pytest.raises(HostError, match="more than 1 s"):
        await host.run(["sleep", "1000"], limit=1)


async def test_refused_arguments_say_why(lab: Lab) -> None:
    host = await lab.host(cpu=A57_R1P3)
    with pytest.raises(VmExitedError, match="unsupported machine type"):
        async with host.guest(machine="no-such-machine"):
            pytest.fail("QEMU started")


async def test_no_guest_outlives_its_test(lab: Lab) -> None:
    host = await lab.host(cpu=A57_R1P3)

    async def fail_while_the_guest_runs() -> None:
        async with host.guest(image=counter_guest()) as guest:
            await guest.wait_counter_moves()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_while_the_guest_runs()
    assert (await host.run("pidof qemu-system-aarch64", check=False)).stdout == ""


async def test_guest_that_is_killed(lab: Lab) -> None:
    host = await lab.host(cpu=A57_R1P3)
    async with host.guest() as guest:
        await guest.kill()
        assert guest.returncode == -signal.SIGKILL
        with pytest.raises(VmExitedError):
            await guest.status()


async def test_panic_is_told_with_the_kernels_last_words() -> None:
    hosts: list[Host] = []

    async def panic() -> None:
        async with running_host(cpu=A57_R1P3) as host:
            hosts.append(host)
            await host.run("echo c > /proc/sysrq-trigger; sleep 1000")

    with pytest.raises(HostError, match="sysrq triggered crash"):
        await panic()
    assert not hosts[0].alive()


async def test_missing_things_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there are bullseye, bookworm, trixie, sid"):
        host_image("potato")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingQemuError, match="apt-get install qemu-system-arm"):
        async with running_host(cpu=A57_R1P3):
            pytest.fail("the host started")
    monkeypatch.setenv("VMSTATE_PROXY_LAB_CACHE", str(tmp_path))
    with pytest.raises(ImageError, match="apt-get is not installed"):
        host_image("bookworm")


async def test_mirror_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMSTATE_PROXY_LAB_CACHE", str(tmp_path))
    monkeypatch.setenv("VMSTATE_PROXY_LAB_MIRROR", f"file:{tmp_path}/nowhere")
    with pytest.raises(ImageError, match="is the network there"):
        host_image("bookworm")
    assert not list(tmp_path.glob("bookworm-[0-9a-f]*[0-9a-f]/Image"))
