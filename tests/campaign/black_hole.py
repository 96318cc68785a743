"""A black hole: the kernel drops what comes and goes at a port, and says nothing. In a network namespace of our own."""

from __future__ import annotations

from contextlib import suppress

import trio

from tests.lab.namespace import program
from tests.lab.qmp import LabError

_TABLE = "inet campaign"


async def open_black_hole(port: int) -> None:
    """Drop all packets to and from a port of the loopback."""
    rules = f"add table {_TABLE}\nadd chain {_TABLE} hole {{ type filter hook output priority 0; }}\n"
    rules += "".join(f"add rule {_TABLE} hole tcp {end} {port} drop\n" for end in ("dport", "sport"))
    await _nft("-f", "-", text=rules)


async def close_black_hole() -> None:
    """Let packets pass again."""
    with suppress(LabError):
        await _nft("delete", "table", *_TABLE.split())


async def _nft(*words: str, text: str = "") -> None:
    command = [program("nft", "nftables"), *words]
    done = await trio.run_process(command, stdin=text.encode(), capture_stderr=True, check=False)
    if done.returncode:
        raise LabError(f"nft: {done.stderr.decode(errors='replace').strip()}")
