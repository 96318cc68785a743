"""Mapped-ram: guests saved to files by a newer QEMU, rewritten in place or as a sparse copy, and loaded again."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from formats.files.libvirt_save import FORMATS, HEADER_SIZE
from tests.lab.guest import counter_guest
from tests.lab.proxy import running_proxy, vmstate_proxy
from tests.lab.qemus import other_qemu
from tests.lab.vm import running_vm, wire_uri
from tests.live.helpers import A57_TO_A72

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.lab.vm import Vm

CHANGED = {"ID_MMFR0_EL1", "ID_MMFR0"}
MAPPED = {"mapped-ram": True}
MULTIFD = MAPPED | {"multifd": True}
CHANNELS = {"multifd-channels": 3}
MIB = 1 << 20
FEW_BYTES = 32 * MIB
"""Most that a command may read: its own code, the stream, and a buffer for each gap of it."""


@pytest.fixture
def qemu() -> str:
    """A QEMU 10.0, of Debian trixie."""
    return other_qemu("trixie", "qemu-system-aarch64")


@asynccontextmanager
async def loaded(qemu: str, uri: str, *, memory_mib: int = 64, multifd: bool = False) -> AsyncIterator[Vm]:
    """Run a QEMU with the other processor that loads a file."""
    async with running_vm(
        name="destination", binary=qemu, cpu="cortex-a72", memory_mib=memory_mib, incoming="defer"
    ) as vm:
        await vm.listen(uri, MULTIFD if multifd else MAPPED, CHANNELS if multifd else None)
        yield vm


async def save(qemu: str, uri: str, *, memory_mib: int = 64, touch: int = 2000, multifd: bool = False) -> int:
    """Save a running guest with a cortex-a57 to a file, and return its counter."""
    async with running_vm(
        name="source", binary=qemu, guest=counter_guest(touch_pages=touch), memory_mib=memory_mib
    ) as vm:
        await vm.wait_counter_moves(60)
        capabilities, parameters = (MULTIFD, CHANNELS) if multifd else (MAPPED, None)
        await vm.migrate(uri, return_path=False, capabilities=capabilities, parameters=parameters)
        assert (await vm.wait_migration(120)).status == "completed"
        settle(uri)
        return await vm.counter()


def settle(uri: str) -> None:
    """See a file to the disk: until then the file system has not decided how many blocks it takes."""
    descriptor = os.open(uri.removeprefix("file:").partition(",")[0], os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def data_of(path: Path) -> list[tuple[int, int]]:
    """Return where a file has data, from and to; between are holes."""
    found, position = [], 0
    with path.open("rb") as file, suppress(OSError):  # ENXIO: no more data
        while True:
            start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, position))
    return found


async def learn(directory: Path, qemu: str) -> str:
    """Learn a profile of the other processor, from a mapped-ram file as well, and return its path."""
    path, profile = directory / "a72.mapped", directory / "a72.toml"
    async with running_vm(name="recorded", binary=qemu, cpu="cortex-a72", paused=True) as vm:
        await vm.migrate(f"file:{path}", return_path=False, capabilities=MAPPED)
        assert (await vm.wait_migration()).status == "completed"
    code, output = await vmstate_proxy("host", "learn", str(path), "-o", str(profile), "--force", "--tcg")
    assert code == 0, output
    return str(profile)


async def rewritten(profile: str, *arguments: object) -> dict[str, Any]:
    """Rewrite a file, and return the report."""
    options = ("--host", profile, "--allow-midr", "none", *A57_TO_A72, "--report", "-")
    code, output = await vmstate_proxy("rewrite", *map(str, arguments), *options)
    assert code == 0, output
    report: dict[str, Any] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert report["outcome"] == "rewritten"
    assert {change["register"] for change in report["changes"]} == CHANGED
    return report


async def goes_on(qemu: str, uri: str, left: int, *, memory_mib: int = 64, multifd: bool = False) -> None:
    async with loaded(qemu, uri, memory_mib=memory_mib, multifd=multifd) as vm:
        await wait_running(vm)
        assert await vm.wait_counter_moves() > left
        assert "!" not in vm.serial_text()


async def wait_running(vm: Vm) -> None:
    with trio.fail_after(60):
        while await vm.status() == "inmigrate":
            await trio.sleep(0.02)


@pytest.mark.parametrize("multifd", [False, True], ids=["one channel", "multifd"])
@pytest.mark.parametrize("offset", [0, 12345], ids=["", "offset"])
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copy"])
async def test_a_rewritten_guest_goes_on(tmp_path: Path, qemu: str, in_place: bool, offset: int, multifd: bool) -> None:
    profile = await learn(tmp_path, qemu)
    path, copy = tmp_path / "guest.mapped", tmp_path / "moved.mapped"
    before = bytes(range(256)) * 49
    path.write_bytes(before[:offset])
    uri = f"file:{path},offset={offset}" if offset else f"file:{path}"
    left = await save(qemu, uri, multifd=multifd)
    old = path.stat()
    original = path.read_bytes()
    if in_place:
        await rewritten(profile, uri, "--in-place")
        result = path
    else:
        await rewritten(profile, uri, copy)
        result = copy
        assert path.read_bytes() == original
        assert data_of(copy) == data_of(path)
    new = result.stat()
    assert new.st_size == old.st_size
    assert new.st_blocks == old.st_blocks or not in_place
    assert old.st_blocks * 512 < old.st_size // 4, "the file has no holes to keep"
    content = result.read_bytes()
    assert content[:offset] == before[:offset]
    assert 0 < sum(one != other for one, other in zip(content[-MIB:], original[-MIB:], strict=True)) < 20
    assert content[:-MIB] == original[:-MIB]
    await goes_on(qemu, uri.replace(str(path), str(result)), left, multifd=multifd)


async def test_the_destination_refuses_it_as_it_was(tmp_path: Path, qemu: str) -> None:
    """Or else what the other tests show would be no merit of the rewrite."""
    path = tmp_path / "guest.mapped"
    await save(qemu, f"file:{path}")
    async with loaded(qemu, f"file:{path}") as vm:
        assert await vm.wait_exit() == 1


async def test_the_pages_of_a_large_guest_are_not_read(tmp_path: Path, qemu: str) -> None:
    profile = await learn(tmp_path, qemu)
    path = tmp_path / "guest.mapped"
    left = await save(qemu, f"file:{path}", memory_mib=1200, touch=1 << 18)
    old = path.stat()
    assert old.st_blocks * 512 > 1 << 30
    commands: list[tuple[object, ...]] = [
        ("inspect", path),
        ("check", path, "--host", profile, "--allow-midr", "none", *A57_TO_A72),
        ("host", "learn", path, "-o", tmp_path / "learned.toml", "--tcg"),
        ("diff", path, path, "--all"),
    ]
    for command in commands:
        assert await bytes_read(*command) < FEW_BYTES, command
    options = ("--host", profile, "--allow-midr", "none", *A57_TO_A72)
    assert await bytes_read("rewrite", path, "--in-place", *options) < FEW_BYTES
    new = path.stat()
    assert (new.st_size, new.st_blocks) == (old.st_size, old.st_blocks)
    await goes_on(qemu, f"file:{path}", left, memory_mib=1200)
    path.unlink()  # pytest would keep it


async def bytes_read(*arguments: object) -> int:
    """Run a command; return how many bytes it read, of whatever file, its own code included."""
    before = _bytes_read_so_far()
    code, output = await vmstate_proxy(*map(str, arguments))
    assert code == 0, output
    return _bytes_read_so_far() - before


def _bytes_read_so_far() -> int:
    """Return what this process and the children that it waited for have read (proc_pid_io(5))."""
    return int(Path("/proc/self/io").read_text().split()[1])


async def test_a_save_file_of_libvirts_format_sparse(tmp_path: Path, qemu: str) -> None:
    """Laid out as libvirt 11.2 does: header, XML, padding, and right behind it the stream, by `file:...,offset=`."""
    profile = await learn(tmp_path, qemu)
    path, copy = tmp_path / "guest.save", tmp_path / "moved.save"
    xml = b"<domain type='qemu'><name>g</name></domain>\0".ljust(64 << 10, b"\0")
    numbers = [2, len(xml), 1, FORMATS.index("sparse"), 0, *[0] * 14]
    head = b"LibvirtQemudSave" + b"".join(number.to_bytes(4, "little") for number in numbers) + xml
    path.write_bytes(head)
    offset = HEADER_SIZE + len(xml)
    left = await save(qemu, f"file:{path},offset={offset:#x}", multifd=True)
    await rewritten(profile, path, copy)
    assert data_of(copy) == data_of(path)
    await rewritten(profile, path, "--in-place")
    assert copy.read_bytes() == path.read_bytes()
    assert path.read_bytes().startswith(head)
    await goes_on(qemu, f"file:{copy},offset={offset:#x}", left, multifd=True)


async def test_over_a_socket_it_is_refused_by_name(tmp_path: Path, qemu: str) -> None:
    """No QEMU sends it there, but a file can be sent to anyone."""
    path = tmp_path / "guest.mapped"
    await save(qemu, f"file:{path}")
    async with running_vm(name="destination", binary=qemu, incoming="tcp:127.0.0.1:0") as destination:
        uri = wire_uri(await destination.incoming_port())
        code, output = await vmstate_proxy("replay", str(path), uri)
        assert code == 4
        assert "which no QEMU takes from a socket" in output
        async with running_proxy(uri, "--mode", "repair", "--midr", "0x411fd073", "--once") as proxy:
            stream = await trio.open_tcp_stream("127.0.0.1", int(proxy.uri.rpartition(":")[2]))
            async with stream:
                await stream.send_all(path.read_bytes()[:4096])
                assert await proxy.wait_exit() == 4
            [report] = proxy.reports()
        assert report["outcome"] == "refused"
        assert "capability mapped-ram is not supported" in report["reason"]
        assert await destination.status() == "inmigrate"
