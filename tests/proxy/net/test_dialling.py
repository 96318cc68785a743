"""How a destination is dialled: a way that stays on the machine is not paced."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tests.lab.netns import join, namespaces
from tests.lab.process import Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.lab.netns import Namespace

HERE, THERE = "10.77.0.1", "10.77.0.2"
LISTENS = """
import socket, time
listeners = [socket.create_server(("::", 4444), family=socket.AF_INET6, dualstack_ipv6=True)]
print("listens", flush=True)
time.sleep(60)
"""
DIALS = """
import socket, sys, trio
from proxy.net.address import parse_address
from proxy.net.dialling import dial

async def main():
    for address in sys.argv[1:]:
        connection = await dial(parse_address(address))
        chosen = connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        print(chosen.rstrip(bytes(1)).decode())
        connection.close()

trio.run(main)
"""


@asynccontextmanager
async def listening(host: Namespace, output: Path) -> AsyncIterator[None]:
    process = Process(host.command(sys.executable, "-c", LISTENS), output)
    try:
        with trio.fail_after(20):
            while output.read_text() != "listens\n":
                await trio.sleep(0.01)
        yield
    finally:
        process.close()


async def test_only_a_way_that_stays_on_the_machine_gets_a_congestion_control_without_pacing(tmp_path: Path) -> None:
    setting = "/proc/sys/net/ipv4/tcp_congestion_control"
    async with namespaces(2) as (here, there):
        await join(here, [f"{HERE}/24"], there, [f"{THERE}/24"])
        available = (await here.run("cat", "/proc/sys/net/ipv4/tcp_available_congestion_control")).split()
        system = next(name for name in available if name != "reno")
        await here.run("tee", setting, text=system)
        async with listening(here, tmp_path / "here"), listening(there, tmp_path / "there"):
            addresses = [f"tcp:{name}:4444" for name in ("127.0.0.1", "[::1]", "localhost", HERE, THERE)]
            chosen = await here.run(sys.executable, "-c", DIALS, *addresses)
    assert chosen.split() == ["reno", "reno", "reno", "reno", system]
