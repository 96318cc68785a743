"""Descriptors, memory and disk that are used up under a running proxy, and are there again after a while."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tests.lab.proxy import Proxy

_BLOCK = bytes(1 << 16)


async def descriptors(proxy: Proxy, seconds: float) -> None:
    """Let the proxy have no more descriptors than it has."""
    held = max(int(one.name) for one in Path(f"/proc/{proxy.pid}/fd").iterdir()) + 1
    await _limit(proxy, resource.RLIMIT_NOFILE, held, seconds)


async def memory(proxy: Proxy, seconds: float) -> None:
    """Let the proxy have no more address space than it has."""
    status = Path(f"/proc/{proxy.pid}/status").read_text()
    await _limit(proxy, resource.RLIMIT_AS, int(status.partition("VmSize:")[2].split()[0]) << 10, seconds)


async def disk(proxy: Proxy, seconds: float) -> None:
    """Fill the file system that the proxy's report and log are on, which is a small one."""
    filler = proxy.report.with_name("filler")
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (len(_BLOCK), 1):
            with suppress(OSError):
                while True:
                    os.write(descriptor, _BLOCK[:size])
        await trio.sleep(seconds)
    finally:
        os.close(descriptor)
        filler.unlink()


async def _limit(proxy: Proxy, what: int, soft: int, seconds: float) -> None:
    before = resource.prlimit(proxy.pid, what)
    resource.prlimit(proxy.pid, what, (soft, before[1]))
    try:
        await trio.sleep(seconds)
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(proxy.pid, what, before)
