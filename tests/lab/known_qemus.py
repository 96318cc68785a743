"""What is known of the QEMUs of the Debian releases, and what a destination is to a source."""

from __future__ import annotations

import json
import re
import shlex
from enum import Enum
from typing import TYPE_CHECKING

import trio

from tests.lab.proxy import vmstate_proxy
from tests.lab.qmp import LabError
from tests.lab.shape import MACHINE
from tests.lab.vm import running_vm

if TYPE_CHECKING:
    from pathlib import Path

_VIRT = re.compile(r"virt-(\d+)\.(\d+)")
SOURCE_CPU, _OTHER_CPU = "cortex-a57", "cortex-a72"
VOUCH = ("--allow-midr", "none")  # TCG guests have no MIDR_EL1 in their streams


class Treatment(Enum):
    """What the destination's processor is, and what the policy lets happen."""

    SAME = "the same processor: nothing to change"
    SWAP = "another processor, and what differs may be swapped"
    FORBID = "another processor, and nothing may be swapped"

    @property
    def cpu(self) -> str:
        """The destination's -cpu."""
        return SOURCE_CPU if self is Treatment.SAME else _OTHER_CPU


class Qemus:
    """What is known of the QEMUs of the Debian releases: profiles of their processors, capabilities, machine types."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: dict[str, trio.Lock] = {}
        self._known: dict[str, set[str]] = {}
        self._machines: dict[str, list[str]] = {}
        self.versions: dict[str, str] = {}

    async def profile(self, suite: str, machine: str, cpu: str) -> str:
        """Return the path of the profile of an emulated processor, learned from a paused guest."""
        stream = await self._stream(suite, machine, cpu)
        path = stream.with_suffix(".toml")
        async with self._locks.setdefault(path.name, trio.Lock()):
            if not path.exists():
                code, output = await vmstate_proxy("host", "learn", str(stream), "-o", str(path), "--force", "--tcg")
                if code:
                    raise LabError(f"{suite}, {machine}, {cpu}: {output}")
        return str(path)

    async def allowances(self, here: str, there: str, machine: str, cpu: str) -> list[str]:
        """Return the options that `check` names for a guest of one QEMU, until it names no others."""
        stream = str(await self._stream(here, machine, SOURCE_CPU))
        profile = await self.profile(there, machine, cpu)
        found: dict[str, dict[str, None]] = {}
        while True:
            options = [word for option, names in found.items() for word in (option, ",".join(names))]
            _, output = await vmstate_proxy("check", stream, "--host", profile, "--json", *VOUCH, *options)
            before = sum(map(len, found.values()))
            for words in json.loads(output)["options"]:
                option, names = shlex.split(words)
                found.setdefault(option, {}).update(dict.fromkeys(names.split(",")))
            if sum(map(len, found.values())) == before:
                return options

    async def _stream(self, suite: str, machine: str, cpu: str) -> Path:
        path = self._folder / f"{suite}-{machine}-{cpu}.stream"
        async with self._locks.setdefault(path.name, trio.Lock()):
            if not path.exists():
                new = path.with_suffix(".new")
                async with running_vm(name="recorded", qemu=suite, cpu=cpu, machine=machine, paused=True) as vm:
                    await vm.migrate(f"exec:cat > '{new}'", return_path=False)
                    await vm.wait_migration()
                new.rename(path)
        return path

    async def capabilities(self, suite: str) -> set[str]:
        """Return the migration capabilities that a QEMU knows."""
        await self._ask(suite)
        return self._known[suite]

    async def machine(self, suite: str, name: str) -> str:
        """Return a machine type: "oldest" and "newest" stand for those of a QEMU's `virt` types."""
        await self._ask(suite)
        ages = {"oldest": self._machines[suite][0], "newest": self._machines[suite][-1]}
        return ages.get(name, name)

    async def _ask(self, suite: str) -> None:
        async with self._locks.setdefault(suite, trio.Lock()):
            if suite in self._known:
                return
            async with running_vm(qemu=suite, machine=MACHINE, paused=True) as vm:
                version = (await vm.qmp("query-version"))["qemu"]
                self.versions[suite] = ".".join(str(version[part]) for part in ("major", "minor", "micro"))
                self._known[suite] = {reply["capability"] for reply in await vm.qmp("query-migrate-capabilities")}
                found = [_VIRT.fullmatch(machine["name"]) for machine in await vm.qmp("query-machines")]
                types = sorted((int(match[1]), int(match[2])) for match in found if match)
                self._machines[suite] = [f"virt-{major}.{minor}" for major, minor in types]
