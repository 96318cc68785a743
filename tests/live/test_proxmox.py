"""Proxmox VE's way through ssh: both QEMUs have a unix socket of one name on their own node, and a tunnel joins them.

Its tunnel is `ssh -L /run/qemu-server/ID.migrate:/run/qemu-server/ID.migrate`, the source's node to the destination's.
Here a relay stands for ssh, and a folder for each node's /run/qemu-server.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tests.lab.guest import counter_guest
from tests.lab.proxy import running_proxy
from tests.lab.vm import running_vm
from tests.live.helpers import A57_TO_A72, learn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NAME = "100.migrate"


@asynccontextmanager
async def tunnel(here: Path, there: Path) -> AsyncIterator[None]:
    """Carry what comes to a socket here to one there, as ssh does with -L."""
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listener.bind(str(here))
    listener.listen()

    async def carry(source: trio.abc.ReceiveStream, sink: trio.SocketStream) -> None:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()

    async def serve() -> None:
        while True:
            accepted, _ = await listener.accept()
            nursery.start_soon(one, trio.SocketStream(accepted))

    async def one(near: trio.SocketStream) -> None:
        far = await trio.open_unix_socket(str(there))
        try:
            async with near, far, trio.open_nursery() as both:
                both.start_soon(carry, near, far)
                both.start_soon(carry, far, near)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield
        nursery.cancel_scope.cancel()
    listener.close()


async def test_the_proxy_takes_the_place_of_the_destinations_socket(tmp_path: Path) -> None:
    """QEMU's socket is given another name once QEMU has made it; the proxy listens under the old one."""
    profile = await learn(tmp_path, "cortex-a72")
    (tmp_path / "source").mkdir()
    (tmp_path / "destination").mkdir()
    near, far = tmp_path / "source" / NAME, tmp_path / "destination" / NAME
    renamed = far.with_suffix(".qemu")
    async with (
        running_vm(name="source", guest=counter_guest(touch_pages=300)) as source,
        running_vm(name="destination", cpu="cortex-a72", incoming=f"unix:{far}") as destination,
    ):
        await source.wait_counter_moves(60)
        os.rename(far, renamed)
        async with (
            running_proxy(
                f"unix:{renamed}",
                "--host",
                profile,
                "--allow-midr",
                "none",
                *A57_TO_A72,
                "--once",
                listen=f"unix:{far}",
            ) as proxy,
            tunnel(near, far),
        ):
            await source.migrate(f"unix:{near}")
            assert (await source.wait_migration(60)).status == "completed", proxy.text()
            left = await source.counter()
            assert await destination.wait_counter_moves(30) > left
            assert await proxy.wait_exit() == 0
            [report] = proxy.reports()
            assert report["outcome"] == "rewritten"
            assert report["destination"] == f"unix:{renamed}"
