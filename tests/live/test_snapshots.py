"""Internal snapshots of qcow2 images: what `savevm` wrote, read, and changed where it lies, for another processor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.lab.guest import counter_guest
from tests.lab.proxy import vmstate_proxy
from tests.lab.qemu_img import assert_clean, qemu_img
from tests.lab.vm import running_vm
from tests.live.helpers import A57_TO_A72, learn
from tests.proxy.captures.test_rewriting import KILLED
from tests.proxy.helpers import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.lab.vm import Vm

DISK = b"what the guest has on its disk" * 100
OPTIONS = {
    "default": (),
    "version 2": ("-o", "compat=0.10"),
    "small clusters": ("-o", "cluster_size=4k"),
    "large clusters": ("-o", "cluster_size=2M"),
    "subclusters": ("-o", "extended_l2=on,cluster_size=64k"),
    "narrow counts": ("-o", "refcount_bits=2"),
    "wide counts": ("-o", "refcount_bits=64"),
}


def create(path: Path, *options: str) -> None:
    qemu_img("create", "-q", "-f", "qcow2", *options, path, "64M")
    disk = path.with_suffix(".disk")
    disk.write_bytes(DISK)
    qemu_img("convert", "-n", "-O", "qcow2", disk, path)


def disk_of(path: Path, *snapshot: str) -> bytes:
    """Return what is on the disk, in the active layer or a snapshot."""
    raw = path.with_suffix(".raw")
    qemu_img("convert", "-O", "raw", *(("-l", *snapshot) if snapshot else ()), path, raw)
    return raw.read_bytes()


def with_disk(path: Path) -> tuple[str, ...]:
    return ("-drive", f"file={path},format=qcow2,if=none,id=disk", "-device", "virtio-blk-pci,drive=disk")


async def monitor(vm: Vm, line: str) -> str:
    answer: str = await vm.qmp("human-monitor-command", **{"command-line": line})
    return answer


async def save(path: Path, *names: str) -> list[int]:
    """Run a guest with a cortex-a57 and take snapshots of it; return its counter at each."""
    counters = []
    async with running_vm(name="saved", guest=counter_guest(touch_pages=300), extra=with_disk(path)) as vm:
        for name in names:
            counters.append(await vm.wait_counter_moves(60))
            assert await monitor(vm, f'savevm "{name}"') == ""
        await leave(vm)
    return counters


async def leave(vm: Vm) -> None:
    """Have a QEMU end by itself; one that is killed leaves clusters behind that nobody refers to."""
    await vm.qmp("quit")
    assert await vm.wait_exit() == 0


@asynccontextmanager
async def other_processor(path: Path) -> AsyncIterator[Vm]:
    async with running_vm(name="other", cpu="cortex-a72", paused=True, extra=with_disk(path)) as vm:
        yield vm
        await leave(vm)


async def loads(path: Path, name: str, counter: int) -> None:
    """See that a snapshot loads on the other processor, and that its guest counts on."""
    async with other_processor(path) as vm:
        assert await monitor(vm, f"loadvm {name}") == ""
        assert await vm.counter() >= counter
        await vm.qmp("cont")
        await vm.wait_counter_moves(30)


async def refused(path: Path, name: str) -> None:
    async with other_processor(path) as vm:
        assert "while loading VM state" in await monitor(vm, f"loadvm {name}")


async def rewritten(source: str, host: str, *more: str) -> str:
    code, output = await vmstate_proxy("rewrite", source, "--in-place", "--host", host, *A57_TO_A72, *more)
    assert code == 0, output
    return output


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_a_snapshot_is_refused_then_rewritten_then_counts_on(tmp_path: Path, options: Sequence[str]) -> None:
    image = tmp_path / "guest.qcow2"
    create(image, *options)
    (counter,) = await save(image, "before")
    host = await learn(tmp_path, "cortex-a72", extra=("-device", "virtio-rng-pci"))
    await refused(image, "before")  # this makes the VM state the active layer's, too
    disks = disk_of(image), disk_of(image, "before")
    before = image.read_bytes()
    source = f"qcow2:{image},snapshot=before"
    code, output = await vmstate_proxy("check", source, "--host", host, *A57_TO_A72, "--summary")
    assert (code, "2 registers swapped" in output) == (0, True), output
    assert "ID_MMFR0, ID_MMFR0_EL1 of 1 vCPU swapped" in await rewritten(source, host)
    after = image.read_bytes()
    assert len(before) == len(after)
    assert 1 <= sum(one != other for one, other in zip(before, after, strict=True)) <= 4
    assert_clean(image)
    assert disks == (disk_of(image), disk_of(image, "before"))
    assert disks[0].startswith(DISK)
    assert "unchanged" in await rewritten(source, host)
    await loads(image, "before", counter)
    assert_clean(image)


async def test_several_snapshots_are_each_their_own(tmp_path: Path) -> None:
    image = tmp_path / "guest.qcow2"
    create(image)
    counters = await save(image, "one", "two", "three")
    host = await learn(tmp_path, "cortex-a72")
    streams = {}
    for name in ("one", "two", "three"):
        code, output = await vmstate_proxy(
            "rewrite", f"qcow2:{image},snapshot={name}", str(tmp_path / name), "--host", host, *A57_TO_A72
        )
        assert code == 0, output
        streams[name] = (tmp_path / name).read_bytes()
    assert len(set(streams.values())) == 3
    await rewritten(f"qcow2:{image},snapshot=two", host)
    assert_clean(image)
    await refused(image, "one")
    await loads(image, "two", counters[1])
    # By its id, too; and what is taken out is the stream that a QEMU loads.
    await rewritten(f"qcow2:{image},snapshot=3", host)
    await loads(image, "three", counters[2])
    async with running_vm(
        name="stream", cpu="cortex-a72", incoming=f"exec:cat {tmp_path / 'one'}", extra=with_disk(image)
    ) as vm:
        await vm.wait_counter_moves(30)
    listed = await vmstate_proxy("inspect", f"qcow2:{image}")
    assert [line.split()[0] for line in listed[1].splitlines()[1:4]] == ["1", "2", "3"]
    code, output = await vmstate_proxy("inspect", f"qcow2:{image}", "--json")
    found = json.loads(output)["snapshots"]
    assert [one["name"] for one in found] == ["one", "two", "three"]
    assert [one["vm_state_size"] for one in found] == [len(streams[name]) for name in ("one", "two", "three")]


async def test_every_command_takes_a_snapshot(tmp_path: Path) -> None:
    image = tmp_path / "guest.qcow2"
    create(image)
    (counter,) = await save(image, "a snapshot")
    source = f"qcow2:{image},snapshot=a snapshot"
    for command in (
        ("inspect", source),
        ("inspect", source, "--section", "globalstate"),
        ("host", "learn", source, "-o", str(tmp_path / "a57.toml"), "--tcg"),
        ("check", source, "--host", str(tmp_path / "a57.toml")),
        ("diff", source, source, "--all", "--exit-code"),
    ):
        code, output = await vmstate_proxy(*command)
        assert code == 0, output
    async with running_vm(
        name="replayed", incoming="tcp:127.0.0.1:0", extra=("-device", "virtio-blk-pci,drive=d", *spare(tmp_path))
    ) as vm:
        code, output = await vmstate_proxy("replay", source, f"tcp:127.0.0.1:{await vm.incoming_port()}")
        assert code == 0, output
        assert await vm.wait_counter_moves(30) >= counter


def spare(folder: Path) -> tuple[str, ...]:
    """Return another disk of the same size."""
    path = folder / "spare.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    return ("-drive", f"file={path},format=qcow2,if=none,id=d")


async def test_an_image_that_a_qemu_has_open_is_not_touched(tmp_path: Path) -> None:
    image = tmp_path / "guest.qcow2"
    create(image)
    await save(image, "one")
    host = await learn(tmp_path, "cortex-a72")
    before = image.read_bytes()
    source = f"qcow2:{image},snapshot=one"
    async with running_vm(name="user", paused=True, extra=with_disk(image)):
        for command in (("rewrite", source, "--in-place", "--host", host, *A57_TO_A72), ("inspect", source)):
            code, output = await vmstate_proxy(*command)
            assert (code, "a QEMU has it open; stop that, or work on a copy" in output) == (1, True), output
        code, output = await vmstate_proxy("inspect", f"qcow2:{image}")
        assert (code, "one" in output) == (0, True)  # the list alone moves nowhere
    assert image.read_bytes() == before
    # And no QEMU opens what is being changed.
    from proxy.captures.stream_files import open_stream

    with open_stream(source, update=True), pytest.raises(subprocess.CalledProcessError) as caught:
        qemu_img("check", image)
    assert "Failed to get" in caught.value.stderr


async def test_a_cluster_of_another_snapshot_is_not_changed(tmp_path: Path) -> None:
    """`loadvm` and `qemu-img snapshot -c` leave two snapshots with one VM state's clusters; one has them as its own."""
    image = tmp_path / "guest.qcow2"
    create(image)
    (counter,) = await save(image, "one")
    host = await learn(tmp_path, "cortex-a72")
    qemu_img("snapshot", "-a", "one", image)
    qemu_img("snapshot", "-c", "disk alone", image)
    code, output = await vmstate_proxy("inspect", f"qcow2:{image},snapshot=disk alone")
    assert (code, "has no VM state here" in output) == (2, True), output
    await rewritten(f"qcow2:{image},snapshot=one", host)
    assert_clean(image)
    await loads(image, "one", counter)
    # A table that says that the other's state is as long makes them its own.
    data = bytearray(image.read_bytes())
    first, second = (data.index(name) - 24 for name in (b"1one", b"2disk alone"))
    data[second : second + 8] = data[first : first + 8]
    data[second - 8 : second - 4] = data[first - 8 : first - 4]
    image.write_bytes(data)
    a57 = tmp_path / "a57.toml"
    code, output = await vmstate_proxy("host", "learn", f"qcow2:{image},snapshot=one", "-o", str(a57), "--tcg")
    assert code == 0, output
    text = a57.read_text().replace("0x10201105", "0x10101105")
    assert text != a57.read_text()
    a57.write_text(text)
    code, output = await vmstate_proxy(
        "rewrite", f"qcow2:{image},snapshot=one", "--in-place", "--host", str(a57), *A57_TO_A72
    )
    assert code == 1, output
    assert "belongs to the snapshot 'disk alone', too, and cannot be changed in place; give OUT" in output
    assert image.read_bytes() == data


async def test_killed_anywhere_it_is_finished_by_the_same_command(tmp_path: Path) -> None:
    image = tmp_path / "guest.qcow2"
    create(image)
    (counter,) = await save(image, "one")
    host = await learn(tmp_path, "cortex-a72")
    old = image.read_bytes()
    source = f"qcow2:{image},snapshot=one"
    command = ("rewrite", source, "--in-place", "--host", host, *A57_TO_A72)
    await rewritten(source, host)
    new = image.read_bytes()
    halves = 0
    for step in range(20):
        image.write_bytes(old)
        killed = await trio.to_thread.run_sync(_killed, step, *command)
        if not killed:
            break
        halves += image.read_bytes() not in (old, new)
        if Path(f"{image}.unfinished").exists():
            code, output = await vmstate_proxy("inspect", source)
            assert (code, "broke off" in output) == (2, True)
        code, output = await vmstate_proxy(*command)
        assert code == 0, output
        assert image.read_bytes() == new
        assert_clean(image)
        assert not Path(f"{image}.unfinished").exists()
    assert 3 <= step < 20
    assert halves
    assert image.read_bytes() == new
    await loads(image, "one", counter)


def _killed(step: int, *command: str) -> bool:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(step), *command], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    return done.returncode == -signal.SIGKILL


REFUSED = {
    "encrypted": (
        ("-o", "encrypt.format=luks,encrypt.key-secret=key", "--object", "secret,id=key,data=secret"),
        "this qcow2 image is encrypted",
    ),
    "external data": (("-o", "data_file=DATA"), "its data is in another file"),
}
BITS = {0: "are not up to date (dirty)", 1: "it is marked as corrupt", 7: "incompatible features 0x80"}


@pytest.mark.parametrize("what", REFUSED)
async def test_images_that_are_refused_by_name(tmp_path: Path, what: str) -> None:
    options, says = REFUSED[what]
    image = tmp_path / "guest.qcow2"
    data = str(tmp_path / "data")
    qemu_img("create", "-q", "-f", "qcow2", *(one.replace("DATA", data) for one in options), image, "1M")
    for source in (f"qcow2:{image}", f"qcow2:{image},snapshot=one"):
        code, output = await vmstate_proxy("inspect", source)
        assert (code, says in output) == (4, True), output


@pytest.mark.parametrize("bit", BITS)
async def test_features_that_are_refused_by_name(tmp_path: Path, bit: int) -> None:
    image = tmp_path / "guest.qcow2"
    create(image)
    data = bytearray(image.read_bytes())
    data[72:80] = (1 << bit).to_bytes(8, "big")
    image.write_bytes(data)
    code, output = await vmstate_proxy("check", f"qcow2:{image},snapshot=one", "--midr", "0x411fd073")
    assert (code, BITS[bit] in output) == (4, True), output


async def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    image = tmp_path / "guest.qcow2"
    create(image)
    await save(image, "one")
    (tmp_path / "plain").write_bytes(b"QEVM")
    for source, code, says in (
        (str(image), 3, "this is a qcow2 image, not a migration stream; name a snapshot in it"),
        (f"qcow2:{image},snapshot=none", 2, "there is no snapshot 'none'; there are 'one'"),
        (f"qcow2:{tmp_path}/plain,snapshot=one", 3, "no qcow2 image: it begins with 51 45 56 4d"),
        (f"qcow2:{tmp_path}/missing,snapshot=one", 1, "missing,snapshot=one: No such file"),
    ):
        found, output = await vmstate_proxy("inspect", source)
        assert (found, says in output) == (code, True), output
        assert "Traceback" not in output
    code, output = await vmstate_proxy("check", f"qcow2:{image}", "--midr", "0x411fd073")
    assert (code, f"say which snapshot: qcow2:{image},snapshot=NAME; there are 'one'" in output) == (2, True)
    os.truncate(image, image.stat().st_size // 2)
    code, output = await vmstate_proxy("inspect", f"qcow2:{image},snapshot=one")
    assert code in (1, 3), output
    assert "ends within" in output or "is cut short" in output
