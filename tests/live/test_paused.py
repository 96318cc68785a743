"""Migrations that are paused in postcopy do not stay for ever, be it that their QEMUs are gone or went another way."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tests.lab.guest import counter_guest
from tests.lab.proxy import running_proxy
from tests.lab.tap import open_tap
from tests.lab.vm import running_vm, wire_uri
from tests.live.test_postcopy import ALLOWED, POSTCOPY, UNLIMITED, Pair, pair, wait_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.lab.proxy import Proxy


@asynccontextmanager
async def paused(directory: Path, *options: str) -> AsyncIterator[tuple[Pair, Proxy, int]]:
    """Break a postcopy migration's connection; yield what is left, and the destination's port."""
    async with pair(directory, POSTCOPY) as it:
        port = await it.destination.incoming_port()
        async with running_proxy(wire_uri(port), "--host", it.profile, *ALLOWED, *options) as proxy:
            async with open_tap(int(proxy.uri.rpartition(":")[2]), directory) as near:
                await it.source.qmp("migrate-set-parameters", **{"max-postcopy-bandwidth": 1 << 20})
                await it.go_over(near.uri, proxy, POSTCOPY)
                await wait_status(it.destination, "postcopy-active")
                near.cut(0)
                await wait_status(it.source, "postcopy-paused")
                await wait_status(it.destination, "postcopy-paused")
            await proxy.wait_text("paused in postcopy")
            yield it, proxy, port


async def test_it_is_kept_for_so_long_and_recovered_later_all_the_same(tmp_path: Path) -> None:
    async with paused(tmp_path, "--recovery-wait", "0.5") as (it, proxy, port):
        [report] = await proxy.wait_reports(1)
        assert report["outcome"] == "failed"
        assert "the migration is paused in postcopy" in report["reason"]
        await it.destination.qmp("migrate-recover", uri=f"tcp:127.0.0.1:{port}")
        await it.source.qmp("migrate-set-parameters", **UNLIMITED)
        await it.source.qmp("migrate", uri=proxy.uri, resume=True)
        await wait_status(it.source, "completed", 60)
        _, second = await proxy.wait_reports(2)
        assert (second["outcome"], second["recoveries"]) == ("unchanged", 1)
        assert "!" not in it.destination.serial_text()


async def test_another_migration_to_its_destination_ends_it(tmp_path: Path) -> None:
    """Its QEMUs are gone, or it was recovered by another way; nobody will come back to it."""
    async with paused(tmp_path) as (it, proxy, port):
        await trio.sleep(0.5)
        assert not proxy.reports()
        await it.destination.kill()
        await it.source.kill()
        async with (
            running_vm(name="source", guest=counter_guest(touch_pages=100)) as source,
            running_vm(name="destination", cpu="cortex-a72", incoming=wire_uri(port)) as destination,
        ):
            await source.wait_counter_moves()
            await source.migrate(proxy.uri)
            assert (await source.wait_migration(60)).status == "completed", proxy.text()
            await destination.wait_counter_moves(30)
            first, second = await proxy.wait_reports(2)
        assert (first["outcome"], second["outcome"]) == ("failed", "rewritten")
        assert "paused in postcopy" in first["reason"]
        assert proxy.text().count("paused in postcopy") == 2  # when it paused, and when it ended
