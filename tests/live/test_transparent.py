"""Migrations that nftables redirects, between network namespaces; no QEMU is told of a proxy."""

from __future__ import annotations

import itertools
import re
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.lab.guest import counter_guest
from tests.lab.netns import Namespace, join, namespaces
from tests.lab.proxy import running_proxy, vmstate_proxy
from tests.lab.qmp import LabError
from tests.lab.vm import running_vm
from tests.live.helpers import A57_TO_A72, learn
from tests.proxy.helpers import short

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.lab.proxy import Proxy

SOURCE, DESTINATION = {4: "10.77.0.1", 6: "fd77::1"}, {4: "10.77.0.2", 6: "fd77::2"}
BEHIND = {4: "10.78.0.2", 6: "fd78::2"}
EVERYWHERE = ("--listen", "tcp:0.0.0.0:4444", "--listen", "tcp:[::]:4444")
LOOPBACK = ("--listen", "tcp:127.0.0.1:4444", "--listen", "tcp:[::1]:4444")
OWN = ("--listen", f"tcp:{DESTINATION[4]}:4444", "--listen", f"tcp:[{DESTINATION[6]}]:4444")
MULTIFD = {"multifd": True}
REPAIR = ("--allow-midr", "none", *A57_TO_A72)
MIGRATION_LIMIT = 60.0


@dataclass(frozen=True)
class Way:
    """Where the proxy stands, and how connections get to it."""

    at_source: bool
    listen: tuple[str, ...]
    rules: tuple[str, ...]


WAYS = {
    "redirect": Way(False, EVERYWHERE, ()),
    "dnat": Way(False, OWN, ("--peers", "10.77.0.0/24,10.77.0.1,fd77::1")),
    "tproxy": Way(False, LOOPBACK, ("--tproxy",)),
    "source": Way(True, LOOPBACK, ("--source", "--peers", "10.77.0.2,fd77::/64")),
}


@dataclass(frozen=True)
class Hosts:
    """Two hosts with a cable between them."""

    source: Namespace
    destination: Namespace


@asynccontextmanager
async def two_hosts() -> AsyncIterator[Hosts]:
    async with namespaces(2) as (source, destination):
        await join(source, cidr(SOURCE), destination, cidr(DESTINATION))
        yield Hosts(source, destination)


def cidr(addresses: dict[int, str]) -> list[str]:
    return [f"{addresses[4]}/24", f"{addresses[6]}/64"]


def uri(addresses: dict[int, str], family: int, port: int = 49152) -> str:
    return f"tcp:{addresses[4]}:{port}" if family == 4 else f"tcp:[{addresses[6]}]:{port}"


async def rules(*options: str) -> str:
    """Return the rules that vmstate-proxy prints."""
    code, text = await vmstate_proxy("transparent", "rules", *options)
    assert code == 0, text
    return text


@asynccontextmanager
async def proxy_at(host: Namespace, way: Way, *options: str) -> AsyncIterator[Proxy]:
    """Run a proxy with its rules loaded."""
    async with running_proxy(None, *way.listen[2:], *options, listen=way.listen[1], namespace=host) as proxy:
        await host.run("nft", "-f", "-", text=await rules(*way.listen, *way.rules))
        yield proxy


@pytest.mark.parametrize("channels", [0, 4])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", WAYS)
async def test_a_repaired_guest_arrives(tmp_path: Path, name: str, family: int, channels: int) -> None:
    way = WAYS[name]
    profile = await learn(tmp_path, "cortex-a72")
    capabilities = MULTIFD if channels else {}
    parameters = {"multifd-channels": channels} if channels else {}
    async with (
        two_hosts() as hosts,
        running_vm(name="source", guest=counter_guest(touch_pages=2000), namespace=hosts.source) as source,
        running_vm(name="destination", cpu="cortex-a72", incoming="defer", namespace=hosts.destination) as destination,
        proxy_at(
            hosts.source if way.at_source else hosts.destination, way, "--host", profile, *REPAIR, "--once"
        ) as proxy,
    ):
        await destination.listen("tcp:[::]:49152" if family == 6 else "tcp:0.0.0.0:49152", capabilities, parameters)
        await source.wait_counter_moves()
        target = uri(DESTINATION, family)
        await source.migrate(target, capabilities=capabilities, parameters=parameters)
        assert (await source.wait_migration(MIGRATION_LIMIT)).status == "completed", proxy.text()
        left = await source.counter()
        assert await destination.wait_counter_moves() > left
        assert "!" not in destination.serial_text()
        assert await proxy.wait_exit() == 0
        [report] = proxy.reports()
        # No address is translated for the proxy: it sees the source's own.
        assert f": from tcp:{uri(SOURCE, family)[4:].rpartition(':')[0]}:" in proxy.text()
        assert f" to {target}\n" in proxy.text()
    assert report["outcome"] == "rewritten"
    assert report["channels"] == channels
    assert {change["register"] for change in report["changes"]} == {"ID_MMFR0_EL1", "ID_MMFR0"}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("tproxy", [False, True])
async def test_a_router_between_the_hosts_redirects(tmp_path: Path, family: int, tproxy: bool) -> None:
    profile = await learn(tmp_path, "cortex-a72")
    way = Way(False, LOOPBACK if tproxy else EVERYWHERE, ("--gateway", *(["--tproxy"] if tproxy else [])))
    async with namespaces(3) as (one, router, other):
        await join(one, cidr(SOURCE), router, cidr(DESTINATION))
        await join(router, ["10.78.0.1/24", "fd78::1/64"], other, cidr(BEHIND))
        for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            await router.run("sh", "-c", f"echo 1 > /proc/sys/net/{switch}")
        for host, gateway in ((one, DESTINATION), (other, {4: "10.78.0.1", 6: "fd78::1"})):
            for address in gateway.values():
                await host.run("ip", "route", "add", "default", "via", address)
        if tproxy:
            # What the rules' own comments say.
            commands = re.findall(r"^#     (ip r.*)$", await rules(*way.listen, *way.rules), re.MULTILINE)
            assert len(commands) == 2
            for command, version in itertools.product(commands, ("-4", "-6")):
                program, *words = command.split()
                await router.run(program, version, *words)
        async with (
            running_vm(name="source", guest=counter_guest(touch_pages=2000), namespace=one) as source,
            running_vm(
                name="destination", cpu="cortex-a72", incoming=uri(BEHIND, family), namespace=other
            ) as destination,
            proxy_at(router, way, "--host", profile, *REPAIR, "--once") as proxy,
        ):
            await source.wait_counter_moves()
            await source.migrate(uri(BEHIND, family))
            assert (await source.wait_migration(MIGRATION_LIMIT)).status == "completed", proxy.text()
            await destination.wait_counter_moves()
            assert await proxy.wait_exit() == 0
            assert proxy.reports()[0]["outcome"] == "rewritten"


@pytest.mark.parametrize("listen", ["tcp:127.0.0.1:4444", "tcp:127.0.0.9:49200"], ids=["elsewhere", "within ports"])
async def test_between_two_qemus_of_one_host(tmp_path: Path, listen: str) -> None:
    profile = await learn(tmp_path, "cortex-a72")
    way = Way(True, ("--listen", listen), ("--source", "--local"))
    async with (
        namespaces(1) as (host,),
        running_vm(name="source", guest=counter_guest(touch_pages=2000), namespace=host) as source,
        running_vm(name="destination", cpu="cortex-a72", incoming="tcp:127.0.0.1:49152", namespace=host) as destination,
        proxy_at(host, way, "--host", profile, *REPAIR, "--once") as proxy,
    ):
        await source.wait_counter_moves()
        await source.migrate("tcp:127.0.0.1:49152")
        assert (await source.wait_migration(MIGRATION_LIMIT)).status == "completed", proxy.text()
        await destination.wait_counter_moves()
        assert await proxy.wait_exit() == 0
        [report] = proxy.reports()
    assert report["outcome"] == "rewritten"


async def test_two_migrations_at_once_keep_their_channels_and_their_ways(tmp_path: Path) -> None:
    """And neither loading the rules again nor the lack of any capability but CAP_NET_ADMIN disturbs them."""
    profile = await learn(tmp_path, "cortex-a72")
    parameters = {"multifd-channels": 3}
    way = WAYS["redirect"]
    again = await rules(*way.listen)
    async with (
        two_hosts() as hosts,
        running_vm(name="source1", guest=counter_guest(touch_pages=3000), namespace=hosts.source) as source1,
        running_vm(name="source2", guest=counter_guest(touch_pages=3000), namespace=hosts.source) as source2,
        running_vm(name="one", cpu="cortex-a72", incoming="defer", namespace=hosts.destination) as destination1,
        running_vm(name="two", cpu="cortex-a72", incoming="defer", namespace=hosts.destination) as destination2,
        proxy_at(only(hosts.destination, "net_admin"), way, "--host", profile, *REPAIR) as proxy,
    ):
        pairs = ((source1, destination1, 49152), (source2, destination2, 49215))
        for source, destination, port in pairs:
            await destination.listen(f"tcp:[::]:{port}", MULTIFD, parameters)
            await source.wait_counter_moves()
        for source, _, port in pairs:
            slow = {"max-bandwidth": 1 << 20, **parameters}
            await source.migrate(uri(DESTINATION, 4, port), capabilities=MULTIFD, parameters=slow)
        for _, _, port in pairs:
            await proxy.wait_text(f" to {uri(DESTINATION, 4, port)}\n")
        assert len(set(re.findall(r"migration (\w+): from", proxy.text()))) == 2
        await hosts.destination.run("nft", "-f", "-", text=again)
        assert not proxy.reports()
        for source, _, _ in pairs:
            await source.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
        for source, destination, _ in pairs:
            assert (await source.wait_migration(MIGRATION_LIMIT)).status == "completed", proxy.text()
            left = await source.counter()
            assert await destination.wait_counter_moves() > left
            assert "!" not in destination.serial_text()
        reports = await proxy.wait_reports(2)
    assert [report["outcome"] for report in reports] == ["rewritten"] * 2
    assert [report["channels"] for report in reports] == [3, 3]


async def test_what_was_not_redirected_is_refused() -> None:
    async with two_hosts() as hosts, proxy_at(hosts.destination, WAYS["redirect"], "--mode", "observe") as proxy:
        assert await talk(hosts.source, DESTINATION[4], 4444) == "reset"
        await proxy.wait_text("it was not redirected, but made to the proxy itself")
        assert await talk(hosts.source, DESTINATION[6], 4444) == "reset"
        assert proxy.text().count("it was not redirected") == 2
        assert not proxy.reports()


async def test_a_rule_that_catches_too_much_makes_no_open_relay() -> None:
    way = replace(WAYS["redirect"], rules=("--ports", "1024-49215"), listen=("--listen", "tcp:0.0.0.0:80"))
    async with two_hosts() as hosts, proxy_at(hosts.destination, way, "--mode", "observe") as proxy:
        assert await talk(hosts.source, DESTINATION[4], 5900) == "reset"
        await proxy.wait_text("it was going to tcp:10.77.0.2:5900, and only ports 49152-49215 are dialled")


@pytest.mark.parametrize("family", [4, 6])
async def test_rules_without_the_mark_make_no_loop(family: int) -> None:
    way = replace(WAYS["source"], rules=("--source", "--mark", "7"))
    async with (
        two_hosts() as hosts,
        proxy_at(hosts.source, way, "--mode", "observe", "--allow-no-return-path") as proxy,
    ):
        assert await talk(hosts.source, DESTINATION[family], 49152) == "reset"
        await proxy.wait_text("it is the proxy's own, which the rules redirected to it again")
        [report] = await proxy.wait_reports(1)
        assert report["outcome"] == "failed"
        assert proxy.text().count("is refused") == proxy.text().count(": from tcp:") == 1


async def test_without_the_capability_it_does_not_start() -> None:
    async with namespaces(1) as (host,):
        with pytest.raises(LabError, match=r"cannot be set: .*CAP_NET_ADMIN"):
            async with running_proxy(None, "--mode", "observe", namespace=only(host, "chown")):
                pass


@pytest.mark.parametrize(
    "side",
    [("--destination",), ("--source",), ("--gateway",), ("--destination", "--tproxy"), ("--gateway", "--tproxy")],
)
@pytest.mark.parametrize("peers", ["", "10.0.0.0/8", "10.0.0.0/8,10.1.0.0/16,::1", "fd00::/8"])
async def test_nft_takes_the_rules_and_loads_them_twice(side: tuple[str, ...], peers: str) -> None:
    text = await rules(*EVERYWHERE, *side, *(["--peers", peers] if peers else []))
    async with namespaces(1) as (host,):
        await host.run("nft", "-c", "-f", "-", text=text)
        for _ in range(2):
            await host.run("nft", "-f", "-", text=text)
        loaded = await host.run("nft", "list", "ruleset")
        families = 1 if peers and "," not in peers else 2
        assert len(re.findall("redirect to|tproxy ip", loaded)) == families
        await host.run("nft", "delete", "table", "inet", "vmstate_proxy")
        assert not await host.run("nft", "list", "ruleset")


def only(host: Namespace, capability: str) -> Namespace:
    """Return a host where commands have one capability alone."""
    caps = f"-all,+{capability}"
    return replace(host, wrapper=("setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}"))


async def talk(host: Namespace, address: str, port: int) -> str:
    """Connect, send the beginning of a migration, and wait: `closed`, `reset` or `data`."""
    program = (
        "import socket\n"
        "try:\n"
        f"    peer = socket.create_connection(({address!r}, {port}), 10)\n"
        "    peer.sendall(b'QEVM\\0\\0\\0\\3')\n"
        "    print('closed' if peer.recv(1) == b'' else 'data')\n"
        "except ConnectionResetError:\n"
        "    print('reset')\n"
    )
    with trio.fail_after(20):
        return (await host.run("python3", "-c", program)).strip()


async def test_a_guest_moves_with_its_disk(tmp_path: Path) -> None:
    """As libvirt does it: its disk over NBD, to a port of the same range, and then the guest."""
    profile = await learn(tmp_path, "cortex-a72")
    old, new = tmp_path / "old", tmp_path / "new"
    content = bytes(range(256)) * 32768
    old.write_bytes(content)
    new.write_bytes(bytes(len(content)))
    async with (
        two_hosts() as hosts,
        running_vm(name="source", guest=counter_guest(), extra=disk_args(old), namespace=hosts.source) as source,
        running_vm(
            name="destination",
            cpu="cortex-a72",
            incoming="tcp:0.0.0.0:49152",
            extra=disk_args(new),
            namespace=hosts.destination,
        ) as destination,
        proxy_at(hosts.destination, WAYS["redirect"], "--host", profile, *REPAIR, "--once") as proxy,
    ):
        await source.wait_counter_moves()
        inet = {"type": "inet", "data": {"host": "0.0.0.0", "port": "49153"}}
        await destination.qmp("nbd-server-start", addr=inet)
        await destination.qmp("nbd-server-add", device="disk", writable=True)
        target = {"type": "inet", "host": DESTINATION[4], "port": "49153"}
        await source.qmp("blockdev-add", driver="nbd", node_name="far", server=target, export="disk")
        await source.qmp("blockdev-mirror", job_id="copy", device="disk", target="far", sync="full")
        with trio.fail_after(MIGRATION_LIMIT):
            while not all(job["ready"] for job in await source.qmp("query-block-jobs")):
                await trio.sleep(0.02)
        await source.qmp("block-job-cancel", device="copy")
        with trio.fail_after(MIGRATION_LIMIT):
            while await source.qmp("query-block-jobs"):
                await trio.sleep(0.02)
        await source.qmp("blockdev-del", node_name="far")
        await source.migrate(uri(DESTINATION, 4))
        assert (await source.wait_migration(MIGRATION_LIMIT)).status == "completed", proxy.text()
        await destination.wait_counter_moves()
        assert await proxy.wait_exit() == 0
        assert "no migration, the destination speaks first; passed on as it is to tcp:10.77.0.2:49153" in proxy.text()
        [report] = proxy.reports()
        assert report["outcome"] == "rewritten"
    assert new.read_bytes() == content


def disk_args(path: Path) -> list[str]:
    """Return QEMU's arguments for a disk in a file."""
    return [
        *("-blockdev", f"driver=raw,node-name=disk,file.driver=file,file.locking=off,file.filename={path}"),
        *("-device", "virtio-blk-pci,drive=disk"),
    ]


async def test_a_migration_that_begins_late_is_carried_all_the_same(tmp_path: Path) -> None:
    """After a second of silence the destination is dialled; what then comes is a migration, and goes to it."""
    stream, received = tmp_path / "stream", tmp_path / "received"
    stream.write_bytes(short("tcg-a57"))
    serve = (
        "import pathlib, socket\n"
        "listening = socket.create_server(('', 49152))\n"
        "peer, _ = listening.accept()\n"
        f"pathlib.Path({str(received)!r}).write_bytes(peer.makefile('rb').read())\n"
    )
    send = (
        "import pathlib, socket, time\n"
        f"peer = socket.create_connection(({DESTINATION[4]!r}, 49152))\n"
        "time.sleep(1.5)\n"
        f"peer.sendall(pathlib.Path({str(stream)!r}).read_bytes())\n"
        "peer.shutdown(socket.SHUT_WR)\n"
        "peer.recv(1)\n"
    )
    async with (
        two_hosts() as hosts,
        proxy_at(hosts.destination, WAYS["redirect"], "--mode", "observe", "--allow-no-return-path", "--once") as proxy,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(hosts.destination.run, "python3", "-c", serve)
        await trio.sleep(0.5)
        await hosts.source.run("python3", "-c", send)
        assert await proxy.wait_exit() == 0, proxy.text()
        assert "speaks first" not in proxy.text()
    assert received.read_bytes() == stream.read_bytes()


async def test_a_silent_connection_ends_with_the_service() -> None:
    """No one listens where the first one was going; the second one is silent when the proxy is told to stop."""
    way = WAYS["redirect"]
    wait = f"import socket; print(socket.create_connection(({DESTINATION[4]!r}, 49152)).recv(1))"
    async with two_hosts() as hosts, proxy_at(hosts.destination, way, "--mode", "observe") as proxy:
        with pytest.raises(LabError, match="ConnectionResetError"):
            await hosts.source.run("python3", "-c", wait)
        assert "the destination at tcp:10.77.0.2:49152 cannot be reached: Connection refused" in proxy.text()
        listening = "import socket; s = socket.create_server(('', 49152)); s.accept()[0].recv(1)"
        async with trio.open_nursery() as nursery:

            async def reset(namespace: Namespace, program: str) -> None:
                with pytest.raises(LabError, match="ConnectionResetError"):
                    await namespace.run("python3", "-c", program)

            nursery.start_soon(reset, hosts.destination, listening)
            await trio.sleep(0.5)
            nursery.start_soon(reset, hosts.source, wait)
            await trio.sleep(2)
            proxy.send_signal(signal.SIGTERM)
            assert await proxy.wait_exit() == 0


async def test_each_destination_has_its_own_profile(tmp_path: Path) -> None:
    """And one that is not known is refused by name, before it is dialled."""
    (tmp_path / "hosts").mkdir()
    profile = Path(await learn(tmp_path, "cortex-a72"))
    profile.rename(tmp_path / "hosts" / f"{DESTINATION[4]}.toml")
    async with (
        two_hosts() as hosts,
        running_vm(name="source", guest=counter_guest(), namespace=hosts.source) as source,
        running_vm(name="there", cpu="cortex-a72", incoming="defer", namespace=hosts.destination) as destination,
        proxy_at(hosts.destination, WAYS["redirect"], "--hosts", str(tmp_path / "hosts"), *REPAIR) as proxy,
    ):
        await destination.listen("tcp:[::]:49152")
        await source.wait_counter_moves()
        await source.migrate(uri(DESTINATION, 6))
        assert (await source.wait_migration(MIGRATION_LIMIT)).status == "failed"
        await source.migrate(uri(DESTINATION, 4))
        assert (await source.wait_migration(MIGRATION_LIMIT)).status == "completed", proxy.text()
        await destination.wait_counter_moves()
        refused, rewritten = await proxy.wait_reports(2)
    assert (refused["outcome"], refused["bytes_out"]) == ("refused", 0)
    assert f"is that of the destination {DESTINATION[6]}: call it" in refused["reason"]
    assert rewritten["outcome"] == "rewritten"
    assert rewritten["profile"]["path"] == str(tmp_path / "hosts" / f"{DESTINATION[4]}.toml")
