"""The matrix's hosts and guests: which there are, their profiles, and what their kernels say of each other's guests.

`captures/hosts/` keeps it: a profile for each host, and in verdicts.json what became of each register when the
destination's own KVM was asked. Tests hold the profiles against that.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.hosts.script.assembly import probe_script
from tests.lab import kernel_answers
from tests.lab.cache import cache_folder
from tests.lab.host_proxy import run_python_in, vmstate_proxy_in
from tests.lab.images import SUITES
from tests.lab.qmp import LabError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.lab.host import Host
    from tests.lab.pool import Lab

ROOT = Path(__file__).parents[2]
HOSTS = ROOT / "captures" / "hosts"
VERDICTS = HOSTS / "verdicts.json"
PROCESSORS = {
    "a57": "cortex-a57,midr=0x411fd073",
    "a72": "cortex-a72",
    "n1": "neoverse-n1",
    "v1": "neoverse-v1",
}
NO_NEOVERSE_V1 = ("bullseye", "bookworm")
"""Their kernels run on it, but two with SVE are enough."""
NO_PYTHON_FOR_US = ("bullseye",)
"""Python 3.9: `--kvm` does not run there, and `host probe` as a script only."""
STREAM = "/tmp/matrix.stream"
SCRIPT = "/tmp/matrix-probe.py"
SCRIPT_LIMIT = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """A host of the matrix.

    Attributes:
        suite: its Debian release.
        processor: one of PROCESSORS.
    """

    suite: str
    processor: str

    def __str__(self) -> str:
        return f"{self.suite}-{self.processor}"

    @property
    def profile(self) -> Path:
        """Where its profile is while the matrix is made."""
        return cache_folder() / "matrix-hosts" / f"{self}.toml"

    @property
    def asks(self) -> bool:
        """Whether this project runs on it."""
        return self.suite not in NO_PYTHON_FOR_US

    @property
    def cpus(self) -> list[str]:
        """The kinds of guest that start on it, each as -cpu."""
        return ["host", "host,pmu=off", *(["host,sve=off,pauth=off"] if self.processor == "v1" else [])]


PLACES = [
    Place(suite, processor)
    for suite in SUITES
    for processor in PROCESSORS
    if processor != "v1" or suite not in NO_NEOVERSE_V1
]


async def host_at(lab: Lab, place: Place) -> Host:
    """Return the host, booted now if it is not up."""
    return await lab.host(cpu=PROCESSORS[place.processor], suite=place.suite)


async def recorded(host: Host, cpu: str) -> bytes:
    """Record the stream of a guest that just started, paused."""
    async with host.guest(name="recorded", cpu=cpu, paused=True) as vm:
        await vm.migrate(f"exec:cat > {STREAM}", return_path=False)
        status = (await vm.wait_migration(60)).status
    if status != "completed":
        raise LabError(f"{host}: the migration to a file is {status}")
    return await host.get(STREAM)


async def survey(host: Host, place: Place) -> None:
    """Make a host's profile by the script of `host probe --script`; where `host probe` runs, it has to say the same."""
    place.profile.parent.mkdir(exist_ok=True)
    await host.put(SCRIPT, probe_script().encode())
    printed = (await host.run(["python3", SCRIPT], limit=SCRIPT_LIMIT)).stdout.encode()
    if place.asks and printed != (await vmstate_proxy_in(host, "host", "probe", "-o", "-")).output:
        raise LabError(f"{host}: 'host probe' says something else than its script")
    place.profile.write_bytes(printed)


async def ask(host: Host, streams: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Ask a host's KVM about guests; return what `tests.lab.kernel_answers` says of each, by name."""
    folder = "/tmp/matrix"
    paths = [f"{folder}/{name}" for name in streams]
    for path, stream in zip(paths, streams.values(), strict=True):
        await host.put(path, stream)
    await host.put(f"{folder}.py", Path(kernel_answers.__file__).read_bytes())
    answers: dict[str, dict[str, Any]] = json.loads((await run_python_in(host, f"{folder}.py", *paths)).stdout)
    await host.run(["rm", "-r", folder])
    return answers


def publish(places: Iterable[Place], verdicts: Mapping[str, Mapping[str, str]]) -> None:
    """Put the profiles of all hosts into captures/hosts/, and the kernels' verdicts, a line for each guest and host."""
    for path in HOSTS.glob("*.toml"):
        path.unlink()
    for place in places:
        shutil.copy(place.profile, HOSTS)
    lines = (f"{json.dumps(pair)}: {json.dumps(actions)}" for pair, actions in sorted(verdicts.items()))
    VERDICTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
