"""Redirected migrations that speak TLS: ended with the host's own credentials, and begun anew to where they went."""

from __future__ import annotations

import datetime
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.lab.guest import counter_guest
from tests.lab.netns import join, namespaces
from tests.lab.pki import Authority
from tests.lab.proxy import running_proxy
from tests.lab.vm import Vm, running_vm
from tests.live.helpers import learn
from tests.live.test_tls import credentials
from tests.live.test_transparent import (
    DESTINATION,
    EVERYWHERE,
    MIGRATION_LIMIT,
    MULTIFD,
    REPAIR,
    SOURCE,
    cidr,
    rules,
    uri,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.lab.proxy import Proxy

HOST = "rack7.example"
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@dataclass
class Moving:
    """A guest that counts, its destination on another host, and the proxy there."""

    source: Vm
    destination: Vm
    proxy: Proxy
    capabilities: Mapping[str, bool]

    async def migrate(self, *, tls: bool = True, parameters: Mapping[str, object] | None = None) -> None:
        given = {"tls-creds": "tls0", "tls-hostname": HOST, **(parameters or {})} if tls else {}
        await self.source.migrate(uri(DESTINATION, 4), capabilities=self.capabilities, parameters=given)

    async def arrives(self) -> None:
        assert (await self.source.wait_migration(MIGRATION_LIMIT)).status == "completed", self.proxy.text()
        left = await self.source.counter()
        assert await self.destination.wait_counter_moves() > left

    async def stays(self) -> None:
        assert (await self.source.wait_migration(MIGRATION_LIMIT)).status == "failed"
        assert await self.source.status() == "running"
        await self.source.wait_counter_moves()


@asynccontextmanager
async def moving(
    folder: Path,
    *options: str,
    capabilities: Mapping[str, bool],
    shown: str | None = None,
    authority: Authority | None = None,
    tls_destination: bool = True,
) -> AsyncIterator[Moving]:
    authority = authority or Authority()
    # The host's certificate is made for its name alone; what was redirected tells an address.
    pki = authority.folder(folder / "pki", "server", "client", host=HOST)
    profile = await learn(folder, "cortex-a72")
    async with namespaces(2) as (here, there):
        await join(here, cidr(SOURCE), there, cidr(DESTINATION))
        async with (
            running_vm(
                name="source",
                guest=counter_guest(touch_pages=2000),
                namespace=here,
                extra=credentials(shown or pki, "client"),
            ) as source,
            running_vm(
                name="destination",
                cpu="cortex-a72",
                incoming="defer",
                namespace=there,
                extra=credentials(pki, "server"),
            ) as destination,
            running_proxy(
                None,
                *EVERYWHERE[2:],
                *("--host", profile, *REPAIR, "--tls", pki, *options),
                listen=EVERYWHERE[1],
                namespace=there,
            ) as proxy,
        ):
            await there.run("nft", "-f", "-", text=await rules(*EVERYWHERE))
            parameters = {"tls-creds": "tls0"} if tls_destination else {}
            await destination.listen("tcp:0.0.0.0:49152", capabilities, parameters)
            await source.wait_counter_moves()
            yield Moving(source, destination, proxy, capabilities)


@pytest.mark.parametrize(
    "capabilities", [{}, MULTIFD, {"postcopy-ram": True, "postcopy-preempt": True}], ids=["plain", "multifd", "preempt"]
)
async def test_a_repaired_guest_arrives(tmp_path: Path, capabilities: Mapping[str, bool]) -> None:
    async with moving(tmp_path, "--require-tls", "--once", capabilities=capabilities) as it:
        await it.migrate()
        await it.arrives()
        assert await it.proxy.wait_exit() == 0, it.proxy.text()
        [report] = it.proxy.reports()
    assert report["outcome"] == "rewritten"
    assert report["source_tls"] == report["destination_tls"] == "guest mover"
    assert report["channels"] == (2 if capabilities == MULTIFD else len(capabilities) // 2)


async def test_what_comes_in_plain_text_goes_on_so(tmp_path: Path) -> None:
    async with moving(tmp_path, "--once", capabilities={}, tls_destination=False) as it:
        await it.migrate(tls=False)
        await it.arrives()
        assert await it.proxy.wait_exit() == 0


async def test_plain_text_is_refused_where_tls_is_required(tmp_path: Path) -> None:
    async with moving(tmp_path, "--require-tls", capabilities={}, tls_destination=False) as it:
        await it.migrate(tls=False)
        await it.stays()
        await it.proxy.wait_text("is refused: it speaks plain text, and --require-tls has sources speak TLS")
        assert not it.proxy.reports()
        assert await it.destination.status() == "inmigrate"


@pytest.mark.parametrize("shown", ["another authority's", "an expired one"])
async def test_who_is_not_trusted_keeps_its_guest(tmp_path: Path, shown: str) -> None:
    authority = Authority()
    path = tmp_path / "shown"
    if shown == "an expired one":
        authority.folder(path, "client", host=HOST, until=LONG_AGO)
    else:
        Authority().folder(path, "client", host=HOST)
        # It trusts the host; the host does not trust it.
        authority.folder(path, host=HOST)
    folder = f"{path},sanity-check=off"
    async with moving(tmp_path, capabilities={}, shown=folder, authority=authority) as it:
        await it.migrate()
        await it.stays()
        await it.proxy.wait_text("failed the TLS handshake: its certificate is not taken")
        assert not it.proxy.reports()
        assert await it.destination.status() == "inmigrate"
