"""Runs of migration-test in a network namespace, where what its QEMUs send each other is redirected to the proxy."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lab.netns import namespaces
from tests.lab.process import Process
from tests.lab.proxy import running_proxy, vmstate_proxy
from tests.lab.qmp import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.lab.netns import Namespace
    from tests.qtest.building import Built

LISTEN = ("--listen", "tcp:127.0.0.1:1000")
"""Below the ports that the tests' QEMUs take."""

PORTS = ("--ports", "1024-65535")
_RESULT = re.compile(r"^(ok|not ok) \d+ (/\S+)( # SKIP)?", re.MULTILINE)
_LIMIT = 300.0
_POLL = 0.005


@dataclass
class Run:
    """What came of a run.

    Attributes:
        passed: The tests that passed.
        failed: Those that did not, or that the program did not come to.
        outcomes: What the proxy reported, and how often.
        output: What the program wrote.
    """

    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    output: str = ""


async def listed(built: Built, architecture: str) -> list[str]:
    """Return the names of all tests of an architecture."""
    output = await _started(None, built, architecture, "-l")
    return [line for line in output.splitlines() if line.startswith("/")]


async def run(
    built: Built, architecture: str, tests: Sequence[str], proxy: Sequence[str] | None, credentials: Path | None = None
) -> Run:
    """Run tests.

    Args:
        built: What was built.
        architecture: Whose QEMU.
        tests: Their names.
        proxy: What the proxy is told; None for no proxy.
        credentials: Becomes a link to the folder that each test makes its certificates in.
    """
    found = Run()
    async with AsyncExitStack() as stack:
        [namespace] = await stack.enter_async_context(namespaces(1))
        carrier = None
        if proxy is not None:
            options = (*LISTEN[2:], *PORTS, *proxy)
            entered = running_proxy(None, *options, listen=LISTEN[1], namespace=namespace)
            carrier = await stack.enter_async_context(entered)
            code, rules = await vmstate_proxy("transparent", "rules", "--source", "--local", *LISTEN, *PORTS)
            if code:
                raise LabError(rules)
            await namespace.run("nft", "-f", "-", text=rules)
        # One after the other: the program ends with the first test that fails.
        for test in tests:
            # Twice: some depend on the time that they take.
            for _ in range(2):
                output = await _started(namespace, built, architecture, "-p", test, credentials=credentials)
                results = {name: word for word, name, skipped in _RESULT.findall(output) if not skipped}
                if results.get(test) == "ok" or "# SKIP" in output:
                    break
            if results.get(test) == "ok":
                found.passed.add(test)
            elif test in results or "# SKIP" not in output:
                found.failed.add(test)
                found.output += f"--- {test}\n{output}\n"
        if carrier is not None:
            await trio.sleep(1)  # the last report may still come
            found.outcomes = Counter(str(one["outcome"]) for one in carrier.reports())
            found.output += carrier.text() if found.failed else ""
    return found


async def _started(
    namespace: Namespace | None, built: Built, architecture: str, *words: str, credentials: Path | None = None
) -> str:
    command = [f"QTEST_QEMU_BINARY={built.qemu(architecture)}", str(built.test), "--full", *words]
    with tempfile.TemporaryDirectory(prefix="vmstate-qtest-") as folder:
        output = Path(folder) / "output"
        whole = ["env", "--chdir", str(built.folder), f"TMPDIR={folder}", *command]
        process = Process(whole if namespace is None else namespace.command(*whole), output)
        try:
            with trio.move_on_after(_LIMIT):
                async with trio.open_nursery() as nursery:
                    if credentials is not None:
                        nursery.start_soon(_follow, Path(folder), credentials)
                    await process.wait()
                    nursery.cancel_scope.cancel()
            return output.read_text(errors="replace")
        finally:
            process.close()


async def _follow(folder: Path, credentials: Path) -> None:
    """Have a link lead to the certificates that a test makes, as soon as it makes them."""
    while True:
        for made in folder.glob("migration-test-*/tlscredsx5090"):
            beside = credentials.with_suffix(".new")
            beside.symlink_to(made)
            beside.rename(credentials)
            return
        await trio.sleep(_POLL)
