"""The failure that the project exists for, on real KVM: two revisions of one processor, a running guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kvm.helpers import THOROUGH, learn
from tests.lab.guest import counter_guest
from tests.lab.host import A57_R1P0, A57_R1P3
from tests.lab.proxy import running_proxy
from tests.lab.vm import wire_uri

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.pool import Lab

MIDRS = {A57_R1P0: 0x411F_D070, A57_R1P3: 0x411F_D073}
# r1p0 has an erratum that a guest of r1p3 does nothing about.
MEETS = {A57_R1P0: ("--allow-erratum", "Arm 832075"), A57_R1P3: ()}
MIDR_ID = "0x603000000013c000"
REFUSALS = {
    # QEMU 7.2 does not pass on what KVM answered (EINVAL).
    "bookworm": "error while loading state for instance 0x0 of device 'cpu'",
    "trixie": "Failed to put registers after init: Invalid argument",
}
UP, DOWN = (A57_R1P0, A57_R1P3), (A57_R1P3, A57_R1P0)
WAYS = {"r1p0-to-r1p3": UP, "r1p3-to-r1p0": DOWN}


@pytest.mark.parametrize(
    ("suite", "here", "there"),
    [
        pytest.param(suite, *way, id=f"{suite}-{name}", marks=() if (suite == "trixie") == (way == UP) else THOROUGH)
        for suite in REFUSALS
        for name, way in WAYS.items()
    ],
)
async def test_direct_migration_is_refused(lab: Lab, suite: str, here: str, there: str) -> None:
    source_host, destination_host = await lab.hosts(here, there, suite=suite)
    async with (
        source_host.guest(name="source", image=counter_guest()) as source,
        destination_host.guest(name="destination", incoming="tcp:127.0.0.1:0") as destination,
    ):
        await source.wait_counter_moves()
        await source.migrate(wire_uri(await destination.incoming_port()))
        assert (await source.wait_migration()).status == "failed"
        assert await destination.wait_exit() == 1
        assert REFUSALS[suite] in destination.stderr_text()
        await source.wait_counter_moves()
        assert await source.status() == "running"
        assert await source.midr() == MIDRS[here]


@pytest.mark.parametrize(
    ("suite", "here", "there", "smp"),
    [
        pytest.param(
            *(suite, *way, smp),
            id=f"{suite}-{name}-{smp}",
            marks=() if (suite, way, smp) in (("bookworm", DOWN, 1), ("trixie", UP, 4)) else THOROUGH,
        )
        for suite in REFUSALS
        for name, way in WAYS.items()
        for smp in (1, 4)
    ],
)
async def test_running_guest_arrives_through_the_proxy(
    lab: Lab, tmp_path: Path, suite: str, here: str, there: str, smp: int
) -> None:
    source_host, destination_host = await lab.hosts(here, there, suite=suite)
    profile = await learn(tmp_path, destination_host)
    image = counter_guest(touch_pages=500)
    async with (
        source_host.guest(name="source", smp=smp, image=image) as source,
        destination_host.guest(name="destination", smp=smp, incoming="tcp:127.0.0.1:0") as destination,
        running_proxy(
            wire_uri(await destination.incoming_port()),
            *("--host", profile, "--allow-midr", f"{MIDRS[here]:#x}", *MEETS[there], "--once"),
        ) as proxy,
    ):
        await source.wait_counter_moves()
        assert await source.midr() == MIDRS[here]
        await source.migrate(proxy.uri)
        assert (await source.wait_migration()).status == "completed", proxy.text()
        left = await source.counter()
        assert await destination.wait_counter_moves() > left
        assert await source.status() == "postmigrate"
        await destination.wait_midr(MIDRS[there])
        assert "!" not in destination.serial_text()
        # The hosts have one processor: QEMU warns of more vCPUs than that.
        assert all("warning: Number of" in line for line in destination.stderr_text().splitlines())

        assert await proxy.wait_exit() == 0
        [report] = proxy.reports()
        assert report["outcome"] == "rewritten"
        assert report["reason"] is None
        changes = [(change["vcpu"], change["id"], change["from"], change["to"]) for change in report["changes"]]
        expected = (MIDR_ID, f"{MIDRS[here]:#x}", f"{MIDRS[there]:#x}")
        assert changes == [(vcpu, *expected) for vcpu in range(smp)]
        assert {change["register"] for change in report["changes"]} == {"MIDR_EL1"}
