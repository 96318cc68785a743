"""TLS between real QEMUs and the proxy: credentials of each side's own, and who is not let in."""

from __future__ import annotations

import datetime
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.lab.guest import counter_guest
from tests.lab.pki import Authority
from tests.lab.proxy import running_proxy
from tests.lab.vm import Vm, running_vm, wire_uri
from tests.live.helpers import A57_TO_A72, learn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

ALLOWED = ("--allow-midr", "none", *A57_TO_A72)
PLAIN: Mapping[str, bool] = {}
MULTIFD = {"multifd": True}
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@dataclass
class Pair:
    """A guest that counts, and a QEMU with another processor that waits for it; they trust different authorities."""

    source: Vm
    destination: Vm
    profile: str
    near: Authority
    far: Authority
    folder: Path

    async def migrate(self, uri: str, capabilities: Mapping[str, bool], *, tls: bool) -> None:
        parameters = {"tls-creds": "tls0", "tls-hostname": "127.0.0.1"} if tls else {}
        await self.source.migrate(uri, capabilities=capabilities, parameters=parameters)

    async def arrives(self) -> None:
        assert (await self.source.wait_migration(60)).status == "completed"
        left = await self.source.counter()
        assert await self.destination.wait_counter_moves() > left


def credentials(folder: str, endpoint: str) -> list[str]:
    """QEMU's options for the credentials in a folder."""
    return ["-object", f"tls-creds-x509,id=tls0,dir={folder},endpoint={endpoint},verify-peer=on"]


@asynccontextmanager
async def pair(
    folder: Path,
    capabilities: Mapping[str, bool],
    *,
    source_folder: str | None = None,
    tls_destination: bool = True,
    near: Authority | None = None,
) -> AsyncIterator[Pair]:
    near, far = near or Authority(), Authority()
    shown = source_folder or near.folder(folder / "source", "client")
    served = far.folder(folder / "destination", "server")
    profile = await learn(folder, "cortex-a72")
    async with (
        running_vm(
            name="source",
            cpu="cortex-a57",
            guest=counter_guest(touch_pages=2000),
            extra=credentials(shown, "client"),
        ) as source,
        running_vm(
            name="destination", cpu="cortex-a72", incoming="defer", extra=credentials(served, "server")
        ) as destination,
    ):
        parameters = {"tls-creds": "tls0"} if tls_destination else {}
        await destination.listen(capabilities=capabilities, parameters=parameters)
        await source.wait_counter_moves()
        yield Pair(source, destination, profile, near, far, folder)


@pytest.mark.parametrize("capabilities", [PLAIN, MULTIFD], ids=["one connection", "multifd"])
async def test_a_repaired_guest_arrives(tmp_path: Path, capabilities: Mapping[str, bool]) -> None:
    async with pair(tmp_path, capabilities) as it:
        options = ["--listen-tls", it.near.folder(tmp_path / "here", "server")]
        options += ["--connect-tls", it.far.folder(tmp_path / "there", "client")]
        uri = wire_uri(await it.destination.incoming_port())
        async with running_proxy(uri, "--host", it.profile, *ALLOWED, *options, "--once") as proxy:
            await it.migrate(proxy.uri, capabilities, tls=True)
            await it.arrives()
            assert await proxy.wait_exit() == 0, proxy.text()
            [report] = proxy.reports()
    assert report["outcome"] == "rewritten"
    assert report["channels"] == (2 if capabilities else 0)


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_tls_on_one_side_only(tmp_path: Path, side: str) -> None:
    async with pair(tmp_path, PLAIN, tls_destination=side == "destination") as it:
        if side == "source":
            options = ["--listen-tls", it.near.folder(tmp_path / "here", "server"), "--connect-plain"]
        else:
            options = ["--connect-tls", it.far.folder(tmp_path / "there", "client"), "--listen-plain"]
        uri = wire_uri(await it.destination.incoming_port())
        async with running_proxy(uri, "--host", it.profile, *ALLOWED, *options, "--once") as proxy:
            await it.migrate(proxy.uri, PLAIN, tls=side == "source")
            await it.arrives()
            assert await proxy.wait_exit() == 0, proxy.text()


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ("another authority's", "its certificate is not taken"),
        ("an expired one", "its certificate is not taken: certificate has expired"),
        ("none", "it has shown no certificate"),
    ],
)
async def test_a_source_that_is_not_let_in_keeps_its_guest(tmp_path: Path, shown: str, words: str) -> None:
    near = Authority()
    folder = near.folder(tmp_path / "shown", *(() if shown == "none" else ("client",)))
    if shown == "an expired one":
        # QEMU would not start with it; it is renewed behind its back.
        near.folder(tmp_path / "shown", "client", until=LONG_AGO)
    if shown == "another authority's":
        certificate = (tmp_path / "shown" / "ca-cert.pem").read_bytes()
        Authority().folder(tmp_path / "shown", "client")
        (tmp_path / "shown" / "ca-cert.pem").write_bytes(certificate)
    extra = ",sanity-check=off"
    async with pair(tmp_path, PLAIN, source_folder=folder + extra, near=near) as it:
        options = ["--listen-tls", near.folder(tmp_path / "here", "server")]
        options += ["--connect-tls", it.far.folder(tmp_path / "there", "client")]
        uri = wire_uri(await it.destination.incoming_port())
        async with running_proxy(uri, "--host", it.profile, *ALLOWED, *options) as proxy:
            await it.migrate(proxy.uri, PLAIN, tls=True)
            assert (await it.source.wait_migration()).status == "failed"
            await proxy.wait_text(words)
            assert proxy.reports() == []
            assert await it.source.status() == "running"
            assert await it.destination.status() == "inmigrate"
            await it.source.wait_counter_moves()


async def test_a_destination_that_is_not_trusted_gets_nothing(tmp_path: Path) -> None:
    async with pair(tmp_path, PLAIN) as it:
        options = ["--listen-tls", it.near.folder(tmp_path / "here", "server")]
        options += ["--connect-tls", it.near.folder(tmp_path / "there", "client")]
        uri = wire_uri(await it.destination.incoming_port())
        async with running_proxy(uri, "--host", it.profile, *ALLOWED, *options, "--once") as proxy:
            await it.migrate(proxy.uri, PLAIN, tls=True)
            assert (await it.source.wait_migration()).status == "failed"
            assert await proxy.wait_exit() == 1
            [report] = proxy.reports()
            await it.source.wait_counter_moves()
    assert "its certificate is not taken" in report["reason"]
    assert report["bytes_out"] == 0


@pytest.mark.parametrize("capabilities", [PLAIN, MULTIFD], ids=["one connection", "multifd"])
async def test_an_observer_passes_tls_unread_as_one_migration(tmp_path: Path, capabilities: Mapping[str, bool]) -> None:
    """The two ends speak TLS with each other; the proxy has no part in it, and says so."""
    authority = Authority()
    shown, served = authority.folder(tmp_path / "source", "client"), authority.folder(tmp_path / "there", "server")
    async with (
        running_vm(name="source", guest=counter_guest(touch_pages=2000), extra=credentials(shown, "client")) as source,
        running_vm(name="destination", incoming="defer", extra=credentials(served, "server")) as destination,
    ):
        await destination.listen(capabilities=capabilities, parameters={"tls-creds": "tls0"})
        await source.wait_counter_moves()
        uri = wire_uri(await destination.incoming_port())
        async with running_proxy(uri, "--mode", "observe", "--once") as proxy:
            parameters = {"tls-creds": "tls0", "tls-hostname": "127.0.0.1"}
            await source.migrate(proxy.uri, capabilities=capabilities, parameters=parameters)
            assert (await source.wait_migration(60)).status == "completed", proxy.text()
            left = await source.counter()
            assert await destination.wait_counter_moves() > left
            assert await proxy.wait_exit() == 0, proxy.text()
            [report] = proxy.reports()
    assert report["outcome"] == "unread"
    assert "this is a TLS handshake" in report["reason"]
    assert report["cause"] is None
    assert report["channels"] == (2 if capabilities else 0)
