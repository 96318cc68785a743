"""One migration between two real QEMUs, through a carrier: how long it took, and what the carrier used."""

from __future__ import annotations

import mmap
import random
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.carriers import CARRIERS, Carrier, Way, carrying, free_port
from benchmarks.goals import LOOKING, THREADS, TLS
from tests.lab.guest import idle_guest
from tests.lab.pki import Authority
from tests.lab.proxy import vmstate_proxy
from tests.lab.vm import running_vm

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = Path("/dev/shm")
_MACHINE = "virt-7.2"
_PAGE = 4096
_LIMIT = 60.0
_SEED = 20


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is migrated.

    Attributes:
        name: as in the tables.
        memory_mib: the guest's RAM.
        content: "random", "zeros", or "mixture": runs of 1 to 64 pages, every other one random, the others zero.
        channels: of multifd; 0 for the main connection alone.
        detection: zero-page-detection, which QEMU has from 9.0 on; empty for what QEMU does by itself.
        tls: whether both QEMUs speak TLS; the carriers that can end and begin it do.
        carriers: who takes part.
        qemu: a Debian release, whose QEMU is taken; None for this machine's.
    """

    name: str
    memory_mib: int
    content: str
    channels: int = 0
    detection: str = ""
    tls: bool = False
    carriers: tuple[Carrier, ...] = CARRIERS
    qemu: str | None = None

    @property
    def why(self) -> str:
        """What there is to say of its processor time where that misses its goal."""
        return TLS if self.tls else THREADS if self.channels else LOOKING


@dataclass(frozen=True, slots=True)
class Measured:
    """One migration.

    Attributes:
        total: seconds that it took, as the source's QEMU reports.
        downtime: seconds that the guest stood, as the source's QEMU reports.
        cpu: seconds of the carrier's processor time for each GiB of guest memory.
        resident: bytes that the carrier had in memory at most.
    """

    total: float
    downtime: float
    cpu: float
    resident: int


@contextmanager
def filled_memory(scenario: Scenario) -> Iterator[list[str]]:
    """Make the guest's memory, in a file of a memory file system, and yield QEMU's arguments for it."""
    size = scenario.memory_mib << 20
    if scenario.content == "zeros":
        yield ["-machine", "memory-backend=ram", "-object", f"memory-backend-ram,id=ram,size={size}"]
        return
    with tempfile.NamedTemporaryFile(dir=_MEMORY, prefix="vmstate-bench-") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as memory:
            _fill(memory, scenario.content == "mixture")
        backend = f"memory-backend-file,id=ram,size={size},share=on,mem-path={file.name}"
        yield ["-machine", "memory-backend=ram", "-object", backend]


def _fill(memory: mmap.mmap, with_gaps: bool) -> None:
    """Fill with bytes that are the same in every run."""
    generator = random.Random(_SEED)
    if not with_gaps:
        for at in range(0, len(memory), 1 << 20):
            memory[at : at + (1 << 20)] = generator.randbytes(1 << 20)
        return
    at = 0
    while at < len(memory):
        length = min(generator.randint(1, 64) * _PAGE, len(memory) - at)
        memory[at : at + length] = generator.randbytes(length)
        at += length + generator.randint(1, 64) * _PAGE


async def profile(folder: Path, qemu: str | None) -> Path:
    """Learn the destination's profile from a guest on this machine; `qemu` is as in `Scenario`.

    Each version of QEMU has a list of registers of its own.
    """
    stream, path = folder / "stream", folder / f"{qemu}.toml"
    async with running_vm(qemu=qemu, machine=_MACHINE, paused=True) as vm:
        await vm.migrate(f"exec:cat > '{stream}'", return_path=False)
        await vm.wait_migration()
    code, output = await vmstate_proxy("host", "learn", str(stream), "-o", str(path), "--force", "--tcg")
    if code:
        raise RuntimeError(output)
    return path


async def migrate(scenario: Scenario, carrier: Carrier, memory: list[str], host: Path) -> Measured:
    """Migrate an idle guest through a carrier.

    Args:
        scenario: what is migrated.
        carrier: what stands between.
        memory: QEMU's arguments for the source's memory; see `filled_memory`.
        host: the destination's profile.
    """
    capabilities = {"multifd": True} if scenario.channels else {}
    parameters: dict[str, Any] = {"multifd-channels": scenario.channels} if scenario.channels else {}
    if scenario.detection:
        parameters["zero-page-detection"] = scenario.detection
    with tempfile.TemporaryDirectory(prefix="vmstate-bench-") as name:
        folder = Path(name)
        tls, secrets = None, list[str]()
        if scenario.tls:
            tls = Path(Authority().folder(folder / "tls", "server", "client"))
            parameters["tls-creds"] = "tls0"
            secrets = ["-object", f"tls-creds-x509,id=tls0,dir={tls},verify-peer=yes,endpoint="]
        server, client = ([*secrets[:1], *(word + role for word in secrets[1:])] for role in ("server", "client"))
        async with (
            running_vm(
                name="source",
                qemu=scenario.qemu,
                machine=_MACHINE,
                memory_mib=scenario.memory_mib,
                guest=idle_guest(),
                extra=[*memory, *client],
            ) as source,
            running_vm(
                name="destination",
                qemu=scenario.qemu,
                machine=_MACHINE,
                memory_mib=scenario.memory_mib,
                incoming="defer",
                extra=["-machine", "memory-backend=ram", "-object", _empty(scenario), *server],
            ) as destination,
        ):
            await destination.listen(capabilities=capabilities, parameters=parameters)
            target = await destination.incoming_port()
            way = Way(target if carrier.command is None else free_port(), target, folder, host, tls=tls)
            async with carrying(carrier, way) as spent:
                await source.migrate(f"tcp:127.0.0.1:{way.port}", capabilities=capabilities, parameters={**parameters})
                outcome = await source.wait_migration(_LIMIT)
                if outcome.status != "completed":
                    said = way.log.read_text() if carrier.command else ""
                    raise RuntimeError(f"{scenario.name}, {carrier.name}: {outcome.error} {said}")
                reply = await source.qmp("query-migrate")
                if await destination.status() != "running":
                    raise RuntimeError(f"{scenario.name}, {carrier.name}: the guest does not run")
    return Measured(
        reply["total-time"] / 1000,
        reply["downtime"] / 1000,
        spent.cpu / (scenario.memory_mib / 1024),
        spent.resident,
    )


def _empty(scenario: Scenario) -> str:
    # Touched before, so that how fast this machine gets memory from its own host is not measured.
    prealloc = "off" if scenario.content == "zeros" else "on"
    return f"memory-backend-ram,id=ram,size={scenario.memory_mib << 20},prealloc={prealloc}"
