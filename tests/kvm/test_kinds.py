"""Guests whose vCPUs are not what `-cpu host` makes: what goes directly goes through the proxy as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.kvm.helpers import probe
from tests.lab.guest import counter_guest
from tests.lab.host import A57_R1P0, A57_R1P3
from tests.lab.host_proxy import running_proxy_in
from tests.lab.images import MACHINES
from tests.lab.proxy import running_proxy
from tests.lab.vm import wire_uri

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.host import Host
    from tests.lab.pool import Lab

A57, N1, V1 = "cortex-a57", "neoverse-n1", "neoverse-v1"
LEAST = "host,sve=off,pauth=off"


@dataclass(frozen=True)
class Row:
    """A guest, two hosts, and what the proxy changes.

    Attributes:
        here: the source's suite and processor.
        there: the destination's.
        cpu: the guest's -cpu.
        arriving: the destination's; None for the guest's.
        options: what the operator vouches for.
        changed: the registers that are changed; none where the guest arrives directly.
    """

    here: tuple[str, str]
    there: tuple[str, str]
    cpu: str = "host"
    arriving: str | None = None
    options: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


ROWS = {
    "a guest without a PMU, of another revision": Row(
        ("bookworm", A57_R1P0),
        ("bookworm", A57_R1P3),
        "host,pmu=off",
        options=("--allow-midr", "0x411fd070"),
        changed=("MIDR_EL1",),
    ),
    "a guest without SVE": Row(("trixie", V1), ("trixie", V1), "host,sve=off"),
    "a guest without PMU and PAuth": Row(("trixie", V1), ("trixie", V1), "host,pmu=off,pauth=off"),
    "from 5.10 to 6.1": Row(("bullseye", A57), ("bookworm", A57)),
    "from 6.12 to 7.2, with SVE": Row(("trixie", V1), ("sid", V1)),
    "to a processor with more": Row(
        ("sid", N1),
        ("sid", V1),
        arriving=LEAST,
        options=("--allow-midr", "0x414fd0c1", "--allow-register", "ID_DFR0_EL1,ID_AA64DFR0_EL1,ID_AA64MMFR2_EL1"),
        changed=("MIDR_EL1", "ID_DFR0_EL1", "ID_AA64DFR0_EL1", "ID_AA64MMFR2_EL1"),
    ),
}


@pytest.mark.parametrize("asked", ["profile", "kvm"])
@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
async def test_a_guest_is_judged_as_what_it_is(lab: Lab, tmp_path: Path, row: Row, asked: str) -> None:
    here = await lab.host(suite=row.here[0], cpu=row.here[1])
    there = await lab.host(suite=row.there[0], cpu=row.there[1])
    report = await moved(here, there, row, asked, tmp_path)
    assert [change["register"] for change in report["changes"]] == list(row.changed)
    if not row.changed:
        assert report["bytes_in"] == report["bytes_out"]


async def moved(here: Host, there: Host, row: Row, asked: str, directory: Path) -> dict[str, Any]:
    """Move a running guest; return the proxy's report."""
    machine = MACHINES.get(here.suite)
    options = [*row.options, "--once"]
    async with (
        here.guest(name="source", cpu=row.cpu, machine=machine, image=counter_guest()) as source,
        there.guest(
            name="destination", cpu=row.arriving or row.cpu, machine=machine, incoming="tcp:127.0.0.1:0"
        ) as destination,
    ):
        uri = wire_uri(await destination.incoming_port())
        if asked == "kvm":
            carrying = running_proxy_in(there, uri, "--kvm", *options)
        else:
            carrying = running_proxy(uri, "--host", await probe(directory, there), *options)  # type: ignore[assignment]
        async with carrying as proxy:
            await source.wait_counter_moves()
            await source.migrate(proxy.uri)
            outcome = await source.wait_migration()
            assert outcome.status == "completed", proxy.text()
            left = await source.counter()
            assert await destination.wait_counter_moves() > left
            assert await proxy.wait_exit() == 0
            [report] = proxy.reports()
    return report


KINDS = {"host": "-cpu host", "host,pmu=off": "-cpu host,pmu=off", LEAST: "-cpu host,pauth=off,sve=off"}


@pytest.mark.parametrize("at_once", [False, True], ids=["in turn", "at once"])
async def test_one_proxy_serves_guests_of_three_kinds(lab: Lab, tmp_path: Path, at_once: bool) -> None:
    """A proxy carries to one destination; three of them carry for three, with one judge of the same host."""
    host = await lab.host(suite="trixie", cpu=V1)
    profile = await probe(tmp_path, host)
    reports = []

    async def move(cpu: str) -> None:
        async with (
            host.guest(name="source", cpu=cpu, image=counter_guest()) as source,
            host.guest(name="destination", cpu=cpu, incoming="tcp:127.0.0.1:0") as destination,
            running_proxy(wire_uri(await destination.incoming_port()), "--host", profile, "--once") as proxy,
        ):
            await source.wait_counter_moves()
            await source.migrate(proxy.uri)
            assert (await source.wait_migration()).status == "completed", proxy.text()
            left = await source.counter()
            assert await destination.wait_counter_moves() > left
            assert await proxy.wait_exit() == 0
            reports.extend(proxy.reports())
