"""Postcopy between real QEMUs: a guest goes over before its memory does, and is judged before it goes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.lab.guest import counter_guest
from tests.lab.proxy import Proxy, running_proxy
from tests.lab.tap import open_tap
from tests.lab.vm import Vm, running_vm, wire_uri
from tests.live.helpers import A57_TO_A72, differing_bytes, learn, record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

PAGES = 8000
SLOWLY = {"max-bandwidth": 4 << 20}
UNLIMITED = {"max-bandwidth": 1 << 40, "max-postcopy-bandwidth": 0}
BEGUN = 1 << 20
"""Bytes after which postcopy is asked for; most of the guest's memory is still to come."""

ALLOWED = ("--allow-midr", "none", *A57_TO_A72)
POSTCOPY = {"postcopy-ram": True}
PREEMPT = {"postcopy-ram": True, "postcopy-preempt": True}


@dataclass
class Pair:
    """A guest that counts, and a QEMU with another processor that waits for it."""

    source: Vm
    destination: Vm
    profile: str

    async def go_over(self, uri: str, proxy: Proxy, capabilities: dict[str, bool]) -> None:
        """Start the migration, and have it go over to postcopy in the midst of it."""
        await self.source.migrate(uri, capabilities=capabilities, parameters=SLOWLY)
        while (await self.source.qmp("query-migrate")).get("ram", {}).get("transferred", 0) < BEGUN:
            await trio.sleep(0.02)
        assert "refused" not in proxy.text()
        await self.source.qmp("migrate-start-postcopy")

    async def arrives(self, proxy: Proxy) -> dict[str, Any]:
        """Wait until the guest runs on the destination with all its memory; return the report."""
        try:
            await wait_status(self.source, "completed", 60)
        except AssertionError as error:
            raise AssertionError(proxy.text()) from error
        left = await self.source.counter()
        assert await self.destination.wait_counter_moves() > left
        assert "!" not in self.destination.serial_text()
        [report] = await proxy.wait_reports(1)
        return report


@asynccontextmanager
async def pair(directory: Path, capabilities: dict[str, bool], *, memory_mib: int = 64) -> AsyncIterator[Pair]:
    profile = await learn(directory, "cortex-a72")
    guest = counter_guest(touch_pages=PAGES)
    async with (
        running_vm(name="source", cpu="cortex-a57", guest=guest, memory_mib=memory_mib) as source,
        running_vm(name="destination", cpu="cortex-a72", incoming="defer", memory_mib=memory_mib) as destination,
    ):
        await destination.listen(capabilities=capabilities)
        await source.wait_counter_moves()
        yield Pair(source, destination, profile)


def options(it: Pair, allowed: Sequence[str] = ALLOWED) -> list[str]:
    return ["--host", it.profile, *allowed, "--once"]


@pytest.mark.parametrize("capabilities", [POSTCOPY, PREEMPT], ids=["postcopy", "preempt"])
async def test_a_repaired_guest_arrives(tmp_path: Path, capabilities: dict[str, bool]) -> None:
    async with pair(tmp_path, capabilities) as it:
        uri = wire_uri(await it.destination.incoming_port())
        async with running_proxy(uri, *options(it)) as proxy:
            await it.go_over(proxy.uri, proxy, capabilities)
            await it.source.qmp("migrate-set-parameters", **UNLIMITED)
            report = await it.arrives(proxy)
            assert await proxy.wait_exit() == 0
    assert report["outcome"] == "rewritten"
    assert report["postcopy"] is True
    assert report["channels"] == (capabilities is PREEMPT)
    assert {change["register"] for change in report["changes"]} == {"ID_MMFR0_EL1", "ID_MMFR0"}


async def test_only_the_registers_are_changed(tmp_path: Path) -> None:
    """Source -> tap -> proxy -> tap -> destination."""
    (tmp_path / "near").mkdir()
    (tmp_path / "far").mkdir()
    async with (
        pair(tmp_path, POSTCOPY) as it,
        open_tap(await it.destination.incoming_port(), tmp_path / "far") as far,
        running_proxy(far.uri, *options(it)) as proxy,
        open_tap(int(proxy.uri.rpartition(":")[2]), tmp_path / "near") as near,
    ):
        await it.go_over(near.uri, proxy, POSTCOPY)
        await it.source.qmp("migrate-set-parameters", **UNLIMITED)
        await it.arrives(proxy)
        [sent], [received] = near.recordings, far.recordings
        await sent.wait()
        await received.wait()
        assert len(differing_bytes(sent.forward.read_bytes(), received.forward.read_bytes())) == 2
        assert sent.backward.read_bytes() == received.backward.read_bytes()


@pytest.mark.parametrize("capabilities", [POSTCOPY, PREEMPT], ids=["postcopy", "preempt"])
async def test_a_refused_guest_goes_on_at_its_source(tmp_path: Path, capabilities: dict[str, bool]) -> None:
    async with pair(tmp_path, capabilities) as it:
        uri = wire_uri(await it.destination.incoming_port())
        async with running_proxy(uri, *options(it, ("--allow-midr", "none"))) as proxy:
            await it.go_over(proxy.uri, proxy, capabilities)
            await it.source.qmp("migrate-set-parameters", **UNLIMITED)
            assert (await it.source.wait_migration(60)).status == "failed", proxy.text()
            assert await proxy.wait_exit() == 4
            assert await it.destination.wait_exit() == 1
            if await it.source.status() != "running":
                await it.source.qmp("cont")
            await it.source.wait_counter_moves()
            assert "!" not in it.source.serial_text()
            [report] = proxy.reports()
    assert report["outcome"] == "refused"
    assert "ID_MMFR0" in report["reason"]
    assert "cont" in report["reason"]


async def test_what_is_known_ahead_is_refused_before_the_guest_stops(tmp_path: Path) -> None:
    known = tmp_path / "source.stream"
    await record(known, "cortex-a57")
    async with pair(tmp_path, POSTCOPY) as it:
        uri = wire_uri(await it.destination.incoming_port())
        async with running_proxy(uri, *options(it, ("--allow-midr", "none", "--source", str(known)))) as proxy:
            await it.source.migrate(proxy.uri, capabilities=POSTCOPY)
            assert (await it.source.wait_migration()).status == "failed"
            assert await proxy.wait_exit() == 4
            assert await it.source.status() == "running"
            await it.source.wait_counter_moves()
            [report] = proxy.reports()
    assert "postcopy is announced, and by what is known of the source would be refused: ID_MMFR0" in report["reason"]


@pytest.mark.parametrize("capabilities", [POSTCOPY, PREEMPT], ids=["postcopy", "preempt"])
@pytest.mark.parametrize("fresh", [False, True], ids=["same proxy", "fresh proxy"])
async def test_a_migration_whose_network_broke_is_recovered(
    tmp_path: Path, capabilities: dict[str, bool], fresh: bool
) -> None:
    async with pair(tmp_path, capabilities) as it:
        port = await it.destination.incoming_port()
        async with running_proxy(wire_uri(port), *options(it)) as proxy:
            async with open_tap(int(proxy.uri.rpartition(":")[2]), tmp_path) as near:
                await it.source.qmp("migrate-set-parameters", **{"max-postcopy-bandwidth": 1 << 20})
                await it.go_over(near.uri, proxy, capabilities)
                await wait_status(it.destination, "postcopy-active")
                await it.destination.wait_counter_moves()
                near.cut(0)
                await wait_status(it.source, "postcopy-paused")
                await wait_status(it.destination, "postcopy-paused")
            await proxy.wait_text("paused in postcopy")
            await it.destination.qmp("migrate-recover", uri=f"tcp:127.0.0.1:{port}")
            await it.source.qmp("migrate-set-parameters", **UNLIMITED)
            if fresh:
                async with running_proxy(wire_uri(port), *options(it)) as another:
                    await it.source.qmp("migrate", uri=another.uri, resume=True)
                    report = await it.arrives(another)
            else:
                await it.source.qmp("migrate", uri=proxy.uri, resume=True)
                report = await it.arrives(proxy)
                assert await proxy.wait_exit() == 0
    assert report["recoveries"] == 1
    assert report["outcome"] == ("unchanged" if fresh else "rewritten")


async def wait_status(vm: Vm, status: str, limit: float = 20) -> None:
    """Wait until QEMU says that of its migration."""
    found = ""
    with trio.move_on_after(limit):
        while found != status:
            found = (await vm.qmp("query-migrate")).get("status", "")
            await trio.sleep(0.02)
    assert found == status, vm.stderr_text()
