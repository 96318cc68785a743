"""What the live tests share: profiles learned from real QEMUs, and streams compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.frame.event import NEED_DATA
from formats.stream.parser import StreamParser
from formats.vmstate.device_state import DeviceState
from formats.vmstate.vcpus import open_vcpus
from tests.lab.proxy import vmstate_proxy
from tests.lab.vm import running_vm

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

A57_TO_A72 = ("--allow-register", "ID_MMFR0_EL1,ID_MMFR0", "--allow-loss", "any")
"""What a TCG cortex-a72 would refuse of a cortex-a57, and the policy allows."""


async def record(
    path: Path, cpu: str, *, machine: str = "virt-7.2", extra: Sequence[str] = (), qemu: str | None = None
) -> bytes:
    """Record the stream of a paused guest."""
    async with running_vm(name="recorded", qemu=qemu, cpu=cpu, machine=machine, paused=True, extra=extra) as vm:
        await vm.migrate(f"exec:cat > '{path}'", return_path=False)
        assert (await vm.wait_migration()).status == "completed"
    return path.read_bytes()


async def learn(
    directory: Path, cpu: str, *, machine: str = "virt-7.2", extra: Sequence[str] = (), qemu: str | None = None
) -> str:
    """Learn a profile from a paused guest, and return its path."""
    stream, profile = directory / f"{cpu}.stream", directory / f"{cpu}.toml"
    await record(stream, cpu, machine=machine, extra=extra, qemu=qemu)
    code, output = await vmstate_proxy("host", "learn", str(stream), "-o", str(profile), "--force", "--tcg")
    assert code == 0, output
    return str(profile)


def registers_of(stream: bytes) -> list[dict[int, int]]:
    """Return each vCPU's registers."""
    parser = StreamParser()
    vcpus: list[dict[int, int]] = []
    for data in (stream, b""):
        parser.feed(data)
        while (event := parser.next_event()) is not NEED_DATA:
            if isinstance(event, DeviceState):
                vcpus += [dict(registers.items()) for registers in open_vcpus(event)]
    return vcpus


def differing_bytes(one: bytes, other: bytes) -> list[int]:
    """Return the offsets at which two streams of one length differ."""
    assert len(one) == len(other)
    step = 1 << 16
    return [
        at + index
        for at in range(0, len(one), step)
        if one[at : at + step] != other[at : at + step]
        for index, (left, right) in enumerate(zip(one[at : at + step], other[at : at + step], strict=True))
        if left != right
    ]
