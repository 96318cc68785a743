"""Whatever is refused or goes wrong, the source keeps its guest and the destination never runs it."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.lab.guest import counter_guest
from tests.lab.proxy import Proxy, running_proxy
from tests.lab.tap import Ending, open_tap
from tests.lab.vm import Vm, running_vm, wire_uri
from tests.live.helpers import A57_TO_A72, learn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SLOW = {"max-bandwidth": 8 << 20}


async def assert_source_goes_on(source: Vm, destination: Vm) -> None:
    """The source counts on, and the destination is gone without having run."""
    assert (await source.wait_migration()).status == "failed"
    await source.wait_counter_moves()
    assert await source.status() == "running"
    assert await destination.wait_exit() != 0
    assert "." not in destination.serial_text()


@asynccontextmanager
async def source_and_destination() -> AsyncIterator[tuple[Vm, Vm]]:
    async with (
        running_vm(name="source", guest=counter_guest(touch_pages=8000)) as source,
        running_vm(name="destination", cpu="cortex-a72", incoming="tcp:127.0.0.1:0") as destination,
    ):
        await source.wait_counter_moves()
        yield source, destination


async def test_processor_id_that_is_not_in_the_whitelist(tmp_path: Path) -> None:
    async with (
        source_and_destination() as (source, destination),
        running_proxy(wire_uri(await destination.incoming_port()), "--midr", "0x410fd083", "--once") as proxy,
    ):
        await source.migrate(proxy.uri)
        await assert_source_goes_on(source, destination)
        assert await proxy.wait_exit() == 4
        [report] = proxy.reports()
        assert report["outcome"] == "refused"
        assert "--allow-midr none" in report["reason"]
        assert report["reason"] in proxy.text()


async def test_register_that_is_not_listed(tmp_path: Path) -> None:
    profile = await learn(tmp_path, "cortex-a72")
    async with (
        source_and_destination() as (source, destination),
        open_tap(await destination.incoming_port(), tmp_path) as after,
        running_proxy(after.uri, "--host", profile, "--allow-register", "ID_MMFR0_EL1", "--once") as proxy,
    ):
        await source.migrate(proxy.uri)
        await assert_source_goes_on(source, destination)
        assert await proxy.wait_exit() == 4
        [report] = proxy.reports()
        assert report["changes"] == []
        assert "--allow-register ID_MMFR0," in report["reason"]
        assert await after.recordings[0].wait() is Ending.RESET
        # A reset drops what the kernel had not sent yet.
        assert after.recordings[0].forward.stat().st_size <= report["bytes_out"]
        assert b"cpu_common" not in after.recordings[0].forward.read_bytes()


async def test_source_without_return_path(tmp_path: Path) -> None:
    profile = await learn(tmp_path, "cortex-a72")
    options = ("--host", profile, *A57_TO_A72, "--allow-midr", "none", "--once")
    async with (
        source_and_destination() as (source, destination),
        running_proxy(wire_uri(await destination.incoming_port()), *options) as proxy,
    ):
        await source.migrate(proxy.uri, return_path=False)
        assert (await source.wait_migration()).status == "failed"
        await source.wait_counter_moves()
        assert await proxy.wait_exit() == 4
        [report] = proxy.reports()
        assert "return-path" in report["reason"]
        assert "--allow-no-return-path" in report["reason"]
        # Refused at its header, before the destination was dialled; that still waits, and can be used.
        assert report["bytes_out"] == 0
        assert await destination.status() == "inmigrate"
        async with running_proxy(
            wire_uri(await destination.incoming_port()), *options, "--allow-no-return-path"
        ) as permissive:
            await source.migrate(permissive.uri, return_path=False)
            assert (await source.wait_migration()).status == "completed"
            await destination.wait_counter_moves()
            assert await permissive.wait_exit() == 0


async def test_strangers_do_not_reach_the_destination(tmp_path: Path) -> None:
    """A QEMU that waits for a migration exits when its one connection brings something else."""
    profile = await learn(tmp_path, "cortex-a72")
    async with (
        source_and_destination() as (source, destination),
        running_proxy(
            wire_uri(await destination.incoming_port()), "--host", profile, *A57_TO_A72, "--allow-midr", "none"
        ) as proxy,
    ):
        port = int(proxy.uri.rpartition(":")[2])
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
        await proxy.wait_text("left without a word")
        async with await trio.open_tcp_stream("127.0.0.1", port) as scanner:
            await scanner.send_all(b"GET / HTTP/1.1\r\n\r\n")
            await proxy.wait_text("is refused: offset 0x0: this is no migration stream")
        assert proxy.reports() == []
        assert await destination.status() == "inmigrate"
        await source.migrate(proxy.uri)
        assert (await source.wait_migration()).status == "completed"
        await destination.wait_counter_moves()


@asynccontextmanager
async def in_the_middle(tmp_path: Path, *options: str) -> AsyncIterator[tuple[Vm, Vm, Proxy]]:
    """A migration that is under way: slow, and a megabyte has passed."""
    profile = await learn(tmp_path, "cortex-a72")
    async with (
        source_and_destination() as (source, destination),
        open_tap(await destination.incoming_port(), tmp_path) as after,
        running_proxy(after.uri, "--host", profile, *A57_TO_A72, "--allow-midr", "none", *options) as proxy,
    ):
        await source.migrate(proxy.uri, parameters=SLOW)
        await after.wait_forwarded(1 << 20)
        yield source, destination, proxy


async def test_destination_that_is_killed(tmp_path: Path) -> None:
    async with in_the_middle(tmp_path, "--once") as (source, destination, proxy):
        await destination.kill()
        await assert_source_goes_on(source, destination)
        assert await proxy.wait_exit() == 1
        assert proxy.reports()[0]["outcome"] == "failed"
        assert "destination" in proxy.reports()[0]["reason"]


async def test_proxy_that_is_killed(tmp_path: Path) -> None:
    async with in_the_middle(tmp_path) as (source, destination, proxy):
        proxy.send_signal(signal.SIGKILL)
        await assert_source_goes_on(source, destination)


async def test_source_that_is_killed(tmp_path: Path) -> None:
    async with in_the_middle(tmp_path, "--once") as (source, destination, proxy):
        await source.kill()
        assert await destination.wait_exit() != 0
        assert "." not in destination.serial_text()
        assert await proxy.wait_exit() != 0
        assert proxy.reports()[0]["outcome"] == "failed"


async def test_migration_that_is_cancelled_and_tried_again(tmp_path: Path) -> None:
    async with in_the_middle(tmp_path) as (source, destination, proxy):
        await source.qmp("migrate_cancel")
        assert (await source.wait_migration()).status == "cancelled"
        await source.wait_counter_moves()
        assert await destination.wait_exit() != 0
        [report] = await proxy.wait_reports(1)
        assert report["outcome"] == "failed"


@pytest.mark.parametrize("signals", [1, 2])
async def test_sigterm_drains_and_a_second_one_resets(tmp_path: Path, signals: int) -> None:
    async with in_the_middle(tmp_path) as (source, destination, proxy):
        proxy.send_signal(signal.SIGTERM)
        await proxy.wait_text("no new migrations")
        if signals == 1:
            await source.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
            assert (await source.wait_migration()).status == "completed"
            await destination.wait_counter_moves()
            assert await proxy.wait_exit() == 0
            assert proxy.reports()[0]["outcome"] == "rewritten"
        else:
            proxy.send_signal(signal.SIGTERM)
            await assert_source_goes_on(source, destination)
            assert await proxy.wait_exit() == 1
            assert proxy.reports()[0]["outcome"] == "failed"


async def test_sighup_ends_nothing_and_opens_the_report_anew(tmp_path: Path) -> None:
    """As log rotation and a closed terminal do, in the middle of a migration."""
    async with in_the_middle(tmp_path) as (source, destination, proxy):
        rotated = proxy.report.rename(proxy.report.with_suffix(".1"))
        proxy.send_signal(signal.SIGHUP)
        await proxy.wait_text("the report's file was opened anew; migrations go on")
        await source.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
        assert (await source.wait_migration()).status == "completed"
        await destination.wait_counter_moves()
        [report] = await proxy.wait_reports(1)
        assert report["outcome"] == "rewritten"
        assert rotated.read_text() == ""
        # A folder that is gone: the file that is open stays.
        rotated.unlink()
        proxy.report.rename(rotated)
        proxy.report.mkdir()
        proxy.send_signal(signal.SIGHUP)
        await proxy.wait_text("Is a directory; nothing has changed")


async def test_destination_that_refuses_what_the_policy_let_pass(tmp_path: Path) -> None:
    """The whole stream was sent, but the destination does not confirm: that is no success."""
    async with (
        source_and_destination() as (source, destination),
        running_proxy(
            wire_uri(await destination.incoming_port()), "--midr", "0x410fd083", "--allow-midr", "none", "--once"
        ) as proxy,
    ):
        await source.migrate(proxy.uri)
        await assert_source_goes_on(source, destination)
        assert await proxy.wait_exit() == 1
        [report] = proxy.reports()
        assert report["outcome"] == "failed"
        assert "did not take the guest" in report["reason"]
