"""Internal snapshots on real KVM: what `savevm` wrote on one processor loads on the other once it is rewritten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kvm.helpers import learn
from tests.kvm.test_migration import MIDRS
from tests.lab.guest import counter_guest
from tests.lab.host import A57_R1P0, A57_R1P3
from tests.lab.proxy import vmstate_proxy
from tests.lab.qemu_img import assert_clean, qemu_img
from tests.lab.vm import VmExitedError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.pool import Lab
    from tests.lab.vm import Vm

ON_HOST = "/tmp/guest.qcow2"
DISK = ("-drive", f"file={ON_HOST},format=qcow2,if=none,id=disk")


async def monitor(vm: Vm, line: str) -> str:
    answer: str = await vm.qmp("human-monitor-command", **{"command-line": line})
    return answer


async def test_a_snapshot_goes_to_the_other_processor(lab: Lab, tmp_path: Path) -> None:
    here, there = await lab.hosts(A57_R1P0, A57_R1P3, suite="trixie")
    profile = await learn(tmp_path, there)
    image = tmp_path / "guest.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "16M")
    await here.put(ON_HOST, image.read_bytes())
    async with here.guest(name="saved", image=counter_guest(touch_pages=200), extra=DISK) as vm:
        counter = await vm.wait_counter_moves()
        assert await monitor(vm, "savevm before") == ""
        await vm.qmp("quit")
        assert await vm.wait_exit() == 0
    image.write_bytes(await here.get(ON_HOST))
    await there.put(ON_HOST, image.read_bytes())
    with pytest.raises(VmExitedError, match="Failed to put registers after init: Invalid argument"):
        async with there.guest(name="refused", paused=True, extra=DISK) as vm:
            await monitor(vm, "loadvm before")
    source = f"qcow2:{image},snapshot=before"
    judged = ("--host", profile, "--allow-midr", f"{MIDRS[A57_R1P0]:#x}")
    code, output = await vmstate_proxy("rewrite", source, "--in-place", *judged)
    assert (code, "MIDR_EL1 of 1 vCPU swapped" in output) == (0, True), output
    assert_clean(image)
    await there.put(ON_HOST, image.read_bytes())
    async with there.guest(name="loaded", paused=True, extra=DISK) as vm:
        assert await monitor(vm, "loadvm before") == ""
        assert await vm.counter() >= counter
        await vm.qmp("cont")
        await vm.wait_counter_moves()
        await vm.wait_midr(MIDRS[A57_R1P3])
