"""A running guest that the destination would refuse arrives through the proxy, and nothing else is changed."""

from __future__ import annotations

import functools
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import parse_register
from tests.lab.guest import counter_guest
from tests.lab.proxy import running_proxy
from tests.lab.tap import Ending, open_tap
from tests.lab.vm import running_vm, wire_uri
from tests.live.helpers import A57_TO_A72, differing_bytes, learn, registers_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("smp", [1, 4])
async def test_guest_arrives_and_only_reported_registers_differ(tmp_path: Path, smp: int) -> None:
    profile = await learn(tmp_path, "cortex-a72")
    async with (
        running_vm(name="source", smp=smp, guest=counter_guest(touch_pages=3000)) as source,
        running_vm(name="destination", smp=smp, cpu="cortex-a72", incoming="tcp:127.0.0.1:0") as destination,
        open_tap(await destination.incoming_port(), tmp_path) as after,
        running_proxy(after.uri, "--host", profile, "--allow-midr", "none", *A57_TO_A72, "--once") as proxy,
        open_tap(int(proxy.uri.rpartition(":")[2]), tmp_path) as before,
    ):
        await source.wait_counter_moves()
        await source.migrate(before.uri)
        assert (await source.wait_migration()).status == "completed"
        left = await source.counter()
        assert await destination.wait_counter_moves() > left
        assert await source.status() == "postmigrate"
        assert await proxy.wait_exit() == 0
        assert await before.recordings[0].wait() is Ending.CLOSED
        assert await after.recordings[0].wait() is Ending.CLOSED

        [report] = proxy.reports()
        came, went = before.recordings[0].forward.read_bytes(), after.recordings[0].forward.read_bytes()
        assert report["outcome"] == "rewritten"
        assert report["reason"] is None
        assert (report["bytes_in"], report["bytes_out"]) == (len(came), len(went))
        assert before.recordings[0].backward.read_bytes() == after.recordings[0].backward.read_bytes()

        reported = {(change["vcpu"], change["id"]): change for change in report["changes"]}
        assert len(reported) == len(report["changes"]) == 2 * smp
        old, new = registers_of(came), registers_of(went)
        changed = {
            (vcpu, f"0x{register:016x}"): (value, new[vcpu][register])
            for vcpu, registers in enumerate(old)
            for register, value in registers.items()
            if value != new[vcpu][register]
        }
        assert {key: (int(change["from"], 16), int(change["to"], 16)) for key, change in reported.items()} == changed
        assert {change["register"] for change in report["changes"]} == {"ID_MMFR0_EL1", "ID_MMFR0"}
        assert {parse_register(change["register"]) for change in report["changes"]} == {
            int(change["id"], 16) for change in report["changes"]
        }
        # 0x10101105 -> 0x10201105 is one byte of each changed value.
        assert len(differing_bytes(came, went)) == 2 * smp


async def test_observer_changes_nothing_and_says_what_it_would(tmp_path: Path) -> None:
    profile = await learn(tmp_path, "cortex-a72")
    async with (
        running_vm(name="source", guest=counter_guest()) as source,
        running_vm(name="destination", incoming="tcp:127.0.0.1:0") as destination,
        running_proxy(
            wire_uri(await destination.incoming_port()), "--host", profile, *A57_TO_A72, "--mode", "observe"
        ) as proxy,
    ):
        await source.migrate(proxy.uri)
        assert (await source.wait_migration()).status == "completed"
        await destination.wait_counter_moves()
        [report] = await proxy.wait_reports(1)
        assert report["outcome"] == "unchanged"
        assert report["changes"] == []
        assert {change["register"] for change in report["would_change"]} == {"ID_MMFR0_EL1", "ID_MMFR0"}


async def test_other_architectures_pass_untouched(tmp_path: Path) -> None:
    q35 = functools.partial(running_vm, binary="qemu-system-x86_64", machine="pc-q35-7.2", cpu=None)
    async with (
        q35(name="source") as source,
        q35(name="destination", incoming="tcp:127.0.0.1:0") as destination,
        open_tap(await destination.incoming_port(), tmp_path) as after,
        running_proxy(after.uri, "--midr", "0x411fd073", "--once") as proxy,
        open_tap(int(proxy.uri.rpartition(":")[2]), tmp_path) as before,
    ):
        await source.migrate(before.uri)
        assert (await source.wait_migration()).status == "completed"
        assert await proxy.wait_exit() == 0
        assert proxy.reports()[0]["outcome"] == "unchanged"
        await after.recordings[0].wait()
        assert before.recordings[0].forward.read_bytes() == after.recordings[0].forward.read_bytes()
        assert await destination.status() == "running"


async def test_source_without_vmdesc(tmp_path: Path) -> None:
    machine = "virt-7.2,suppress-vmdesc=on"
    profile = await learn(tmp_path, "cortex-a72", machine=machine)
    async with (
        running_vm(name="source", machine=machine, smp=2, guest=counter_guest()) as source,
        running_vm(
            name="destination", machine=machine, smp=2, cpu="cortex-a72", incoming="tcp:127.0.0.1:0"
        ) as destination,
        running_proxy(
            wire_uri(await destination.incoming_port()),
            "--host",
            profile,
            *A57_TO_A72,
            "--allow-midr",
            "none",
            "--once",
        ) as proxy,
    ):
        await source.migrate(proxy.uri)
        assert (await source.wait_migration()).status == "completed"
        await destination.wait_counter_moves()
        assert await proxy.wait_exit() == 0
        assert len(proxy.reports()[0]["changes"]) == 4


async def test_pages_that_came_before_travel_as_xbzrle(tmp_path: Path) -> None:
    xbzrle = {"xbzrle": True}
    profile = await learn(tmp_path, "cortex-a72")
    async with (
        running_vm(name="source", guest=counter_guest(touch_pages=2000)) as source,
        running_vm(name="destination", cpu="cortex-a72", incoming="defer") as destination,
    ):
        await destination.listen(capabilities=xbzrle)
        async with running_proxy(
            wire_uri(await destination.incoming_port()), "--host", profile, *A57_TO_A72, "--allow-midr", "none"
        ) as proxy:
            await source.wait_counter_moves()
            # Slow at first, so that the counter's page has to be sent again.
            await source.migrate(proxy.uri, capabilities=xbzrle, parameters={"max-bandwidth": 8 << 20})
            assert (await source.wait_migration()).status == "completed"
            await destination.wait_counter_moves()
            [report] = await proxy.wait_reports(1)
            assert report["outcome"] == "rewritten"


async def test_two_at_the_same_time_and_one_after_them(tmp_path: Path) -> None:
    profile = await learn(tmp_path, "cortex-a72")
    options = ("--host", profile, *A57_TO_A72, "--allow-midr", "none")
    async with AsyncExitStack() as stack:
        pairs = []
        for number in range(3):
            image = counter_guest(touch_pages=4000)
            source = await stack.enter_async_context(running_vm(name=f"source{number}", guest=image))
            destination = await stack.enter_async_context(
                running_vm(name=f"destination{number}", cpu="cortex-a72", incoming="tcp:127.0.0.1:0")
            )
            pairs.append((source, destination))
        # One proxy leads to one place, so a tap behind it hands its connections out to the destinations.
        tap = await stack.enter_async_context(open_tap(await pairs[0][1].incoming_port(), tmp_path))
        proxy = await stack.enter_async_context(running_proxy(tap.uri, *options))
        for number, (source, destination) in enumerate(pairs):
            tap.target = ("127.0.0.1", await destination.incoming_port())
            await source.migrate(proxy.uri, parameters={"max-bandwidth": 1 << 20} if number == 0 else None)
            await tap.wait_connections(number + 1)
            if number:
                assert (await source.wait_migration()).status == "completed"
                await destination.wait_counter_moves()
                assert len(await proxy.wait_reports(number)) == number
        first, first_destination = pairs[0]
        await first.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
        assert (await first.wait_migration()).status == "completed"
        await first_destination.wait_counter_moves()
        assert [report["outcome"] for report in await proxy.wait_reports(3)] == ["rewritten"] * 3


async def test_over_ipv6(tmp_path: Path) -> None:
    profile = await learn(tmp_path, "cortex-a72")
    async with (
        running_vm(name="source", guest=counter_guest()) as source,
        running_vm(name="destination", cpu="cortex-a72", incoming="tcp:[::1]:0") as destination,
        running_proxy(
            f"tcp:[::1]:{await destination.incoming_port()}",
            *("--host", profile, *A57_TO_A72, "--allow-midr", "none"),
            listen="tcp:[::1]:0",
        ) as proxy,
    ):
        assert proxy.uri.startswith("tcp:[::1]:")
        await source.migrate(proxy.uri)
        assert (await source.wait_migration()).status == "completed"
        await destination.wait_counter_moves()


async def test_memory_stays_small_however_large_the_guest(tmp_path: Path) -> None:
    profile = await learn(tmp_path, "cortex-a72")
    pages = (2 << 30) // 4096 - 2048
    async with (
        running_vm(name="source", memory_mib=2048, guest=counter_guest(touch_pages=pages)) as source,
        running_vm(name="destination", memory_mib=2048, cpu="cortex-a72", incoming="tcp:127.0.0.1:0") as destination,
        running_proxy(
            wire_uri(await destination.incoming_port()), "--host", profile, *A57_TO_A72, "--allow-midr", "none"
        ) as proxy,
    ):
        await source.wait_counter_moves(limit=60)
        await source.migrate(proxy.uri)
        assert (await source.wait_migration(limit=120)).status == "completed"
        await destination.wait_counter_moves()
        [report] = await proxy.wait_reports(1)
        assert report["bytes_out"] > pages * 4096
        assert proxy.peak_resident_bytes() < 80 << 20
