"""Guests whose vCPUs are not what `-cpu host` makes: what goes directly goes through the proxy as it is."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.kvm.helpers import THOROUGH, probe
from tests.lab.guest import counter_guest
from tests.lab.host import A57_R1P0, A57_R1P3
from tests.lab.host_proxy import running_proxy_in, vmstate_proxy_in
from tests.lab.images import MACHINES
from tests.lab.proxy import running_proxy
from tests.lab.vm import wire_uri

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.lab.host import Host
    from tests.lab.host_proxy import HostProxy
    from tests.lab.pool import Lab
    from tests.lab.vm import Vm

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
        options=(
            *("--allow-midr", "0x414fd0c1", "--allow-register", "ID_DFR0_EL1,ID_AA64DFR0_EL1,ID_AA64MMFR2_EL1"),
            *("--allow-loss", "ID_DFR0_EL1.MMapTrc,ID_AA64DFR0_EL1.DoubleLock", "--allow-erratum", "Spectre-BHB-k32"),
        ),
        changed=("MIDR_EL1", "ID_DFR0_EL1", "ID_AA64DFR0_EL1", "ID_AA64MMFR2_EL1"),
    ),
}


IN_TEST = {("a guest without a PMU, of another revision", "kvm"), ("from 6.12 to 7.2, with SVE", "profile")}
"""The rows, and who is asked about them, that `make test` has."""


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        pytest.param(row, asked, id=f"{name}-{asked}", marks=() if (name, asked) in IN_TEST else THOROUGH)
        for name, row in ROWS.items()
        for asked in ("profile", "kvm")
    ],
)
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


async def dispatch(ports: list[int], listeners: list[trio.SocketListener]) -> None:
    """Pass each connection on to the next port, both ways, as a service's address in front of many hosts does."""

    async def pump(here: trio.SocketStream, there: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in here:
                await there.send_all(data)
            await there.send_eof()

    async def carry(source: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", ports.pop(0)) as destination, trio.open_nursery() as both:
            both.start_soon(pump, source, destination)
            both.start_soon(pump, destination, source)

    await trio.serve_listeners(carry, listeners)


@asynccontextmanager
async def pair(here: Host, there: Host, cpu: str, ports: list[int]) -> AsyncIterator[tuple[Vm, Vm]]:
    """Run a guest, and a QEMU that waits for it; its port is the next one."""
    name = cpu.replace(",", "-").replace("=", "-")
    async with (
        here.guest(name=name, cpu=cpu, image=counter_guest()) as guest,
        there.guest(name=name, cpu=cpu, incoming="tcp:127.0.0.1:0") as destination,
    ):
        ports.append(await destination.incoming_port())
        await guest.wait_counter_moves(30)
        yield guest, destination


async def arrived(guest: Vm, destination: Vm, proxy: HostProxy) -> None:
    assert (await guest.wait_migration(60)).status == "completed", proxy.text()
    left = await guest.counter()
    assert await destination.wait_counter_moves(30) > left


@THOROUGH
async def test_one_proxy_serves_guests_of_three_kinds(lab: Lab) -> None:
    """One after the other, then at once; the proxy asks the destination's KVM of each as what it is."""
    there = await lab.host(suite="trixie", cpu=V1)
    here = await lab.host(suite="trixie", cpu=f"{V1},midr=0x411fd401")
    ports: list[int] = []
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(dispatch, ports, listeners)
        uri = f"tcp:127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        proxy = await stack.enter_async_context(running_proxy_in(there, uri, "--kvm", "--allow-midr", "0x411fd401"))
        for cpu in KINDS:
            async with pair(here, there, cpu, ports) as (guest, destination):
                await guest.migrate(proxy.uri)
                await arrived(guest, destination, proxy)
        pairs = [await stack.enter_async_context(pair(here, there, cpu, ports)) for cpu in KINDS]
        for number, (guest, _) in enumerate(pairs, 4):
            # Slow enough to be under way together; the next one comes when this one was dialled on.
            await guest.migrate(proxy.uri, parameters={"max-bandwidth": 10_000})
            with trio.fail_after(60):
                while proxy.text().count(": from tcp:") < number:
                    await trio.sleep(0.1)
        for guest, _ in pairs:
            assert (await guest.qmp("query-migrate"))["status"] == "active"
        for guest, _ in pairs:
            await guest.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
        for guest, destination in pairs:
            await arrived(guest, destination, proxy)
        reports = proxy.reports()
        nursery.cancel_scope.cancel()
    assert [report["start"]["qemu"] for report in reports[:3]] == list(KINDS.values())
    assert sorted(report["start"]["qemu"] for report in reports[3:]) == sorted(KINDS.values())
    for report in reports:
        assert [change["register"] for change in report["changes"]] == ["MIDR_EL1"]


@pytest.mark.parametrize("looks", ["at its process", pytest.param("by QMP", marks=THOROUGH)])
async def test_a_destination_that_was_started_otherwise_is_refused_at_the_first_byte(lab: Lab, looks: str) -> None:
    """The proxy looks at the QEMU that it dials, and knows what the source's guests look like."""
    by_qmp, monitor = (
        (("--destination-qmp", "/tmp/asked.qmp"), ("-qmp", "unix:/tmp/asked.qmp,server=on,wait=off"))
        if looks == "by QMP"
        else ((), ())
    )
    there = await lab.host(suite="trixie", cpu=V1)
    here = await lab.host(suite="trixie", cpu=f"{V1},midr=0x411fd401")
    await there.put("/tmp/source.toml", (await vmstate_proxy_in(here, "host", "probe", "-o", "-")).output)
    async with (
        here.guest(name="source", image=counter_guest(touch_pages=2000)) as source,
        there.guest(name="destination", cpu="host,pmu=off", incoming="tcp:127.0.0.1:0", extra=monitor) as destination,
    ):
        await destination.incoming_port()
        [address] = (await destination.qmp("query-migrate"))["socket-address"]
        options = ("--kvm", "--source", "/tmp/source.toml", "--allow-midr", "0x411fd401", "--once", *by_qmp)
        async with running_proxy_in(there, f"tcp:127.0.0.1:{address['port']}", *options, inside=True) as proxy:
            await source.wait_counter_moves()
            # So slow that it cannot have sent all before it hears of the refusal.
            await source.migrate(proxy.uri, parameters={"max-bandwidth": 100_000})
            assert (await source.wait_migration()).status == "failed"
            await source.wait_counter_moves()
            assert await proxy.wait_exit() == 4
            [report] = proxy.reports()
        assert not any(event["event"] == "STOP" for event in source.events)
    assert report["vcpus"] == 0
    assert "PMU_V3, which the destination's QEMU turns off" in report["reason"]
    assert "-cpu host,pmu=off" in report["reason"]
    assert report["reason"].endswith("start it with -cpu host")
