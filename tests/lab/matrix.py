"""Every ordered pair of lab hosts: what `check` predicts, by profile and by kernel, against what happens.

Run it with `make matrix`. It writes docs/matrix.md, and into captures/hosts/ the hosts' profiles and the kernels'
verdicts, which tests hold the profile judge against.
"""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from formats.arm.sysreg import describe
from proxy.hosts.profile_file import load_profile
from tests.lab.guest import counter_guest
from tests.lab.host_proxy import vmstate_proxy_in
from tests.lab.images import SUITES
from tests.lab.pool import running_lab
from tests.lab.proxy import running_proxy, vmstate_proxy
from tests.lab.qmp import LabError
from tests.lab.vm import wire_uri

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.lab.host import Host
    from tests.lab.vm import Vm

ROOT = Path(__file__).parents[2]
HOSTS = ROOT / "captures" / "hosts"
TABLE = ROOT / "docs" / "matrix.md"
VERDICTS = HOSTS / "verdicts.json"
CPUS = {"a57": "cortex-a57,midr=0x411fd073", "a72": "cortex-a72", "n1": "neoverse-n1"}
ANY_LOSS = ("--allow-loss", "any", "--allow-erratum", "any")
STREAM = "/tmp/matrix.stream"
HEAD = """\
# Who can go where, in the lab

Written by `make matrix`: a running guest is moved between every two of six emulated arm64 hosts, directly and through
the proxy, with a policy that vouches for all that can be vouched for. Before, `check` predicts both, by the
destination's profile and by its kernel; a cell says **wrong** where the two differ in any register, where prediction
and outcome differ, or where the proxy changed anything else than predicted. Rows are sources, columns destinations.

- *as it is*: arrives directly; the proxy passes it on unchanged.
- *n swapped, m left out*: refused directly; arrives through the proxy after so many registers were changed.
- *refused*: refused directly; the proxy ends the migration, too, and the guest runs on at the source.
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What `check` says of a pair.

    Attributes:
        direct: whether the destination takes the guest without a proxy.
        goes: whether it does through the proxy.
        actions: what becomes of each register that is not equal on both sides, by name.
    """

    direct: bool
    goes: bool
    actions: dict[str, str]

    def named(self, action: str) -> list[str]:
        """The registers that an action is taken on."""
        return [name for name, taken in self.actions.items() if taken == action]


@dataclass(frozen=True, slots=True)
class Result:
    """A pair: both predictions, and both outcomes.

    Attributes:
        profile: what `check --host` said.
        kernel: what `check --kvm` said, on the destination.
        direct: whether the guest arrived without a proxy.
        repaired: whether it arrived through the proxy.
        changes: what the proxy reported to have done, by register.
    """

    profile: Answer
    kernel: Answer
    direct: bool
    repaired: bool
    changes: dict[str, str]

    @property
    def problem(self) -> str | None:
        """Where prediction and outcome differ; None when they agree."""
        if self.profile != self.kernel:
            differing = sorted(
                name
                for name in self.profile.actions.keys() | self.kernel.actions.keys()
                if self.profile.actions.get(name) != self.kernel.actions.get(name)
            )
            return f"profile and kernel disagree on {', '.join(differing) or 'the whole'}"
        if (self.kernel.direct, self.kernel.goes) != (self.direct, self.repaired):
            return f"predicted {self.kernel.direct}, {self.kernel.goes}; came out {self.direct}, {self.repaired}"
        expected = {name: action for name, action in self.kernel.actions.items() if action in ("swap", "drop")}
        if self.repaired and self.changes != expected:
            return "the proxy did something else than predicted"
        return None


async def main() -> int:
    """Take every pair; return 1 if one came out otherwise than predicted."""
    with contextmanager(running_lab)() as lab:
        hosts: dict[str, Host] = {}
        for suite in SUITES:
            booted = await lab.hosts(*CPUS.values(), suite=suite)
            hosts |= {f"{suite}-{name}": host for name, host in zip(CPUS, booted, strict=True)}
            say(f"three hosts run {suite}: {SUITES[suite]}")
        with tempfile.TemporaryDirectory(prefix="vmstate-matrix-") as folder:
            streams = {}
            for name, host in hosts.items():
                streams[name] = Path(folder) / f"{name}.stream"
                await survey(name, host, streams[name])
            results = {}
            for source, destination in permutations(hosts, 2):
                profiles = HOSTS / f"{source}.toml", HOSTS / f"{destination}.toml"
                result = await examine(hosts[source], hosts[destination], *profiles, streams[source])
                results[source, destination] = result
                say(f"{source} -> {destination}: {cell(result)}")
    write(results)
    problems = sum(result.problem is not None for result in results.values())
    say(f"{len(results)} pairs, {problems} of them otherwise than predicted; {TABLE.relative_to(ROOT)} has the table")
    return 1 if problems else 0


async def survey(name: str, host: Host, stream: Path) -> None:
    """Probe a host into captures/hosts/, and record a guest that just started on it."""
    probed = await vmstate_proxy_in(host, "host", "probe", "-o", "-")
    HOSTS.mkdir(exist_ok=True)
    (HOSTS / f"{name}.toml").write_bytes(probed.output)
    async with host.guest(name="recorded", paused=True) as vm:
        await vm.migrate(f"exec:cat > {STREAM}", return_path=False)
        expect((await vm.wait_migration()).status, "completed")
    stream.write_bytes(await host.get(STREAM))


async def examine(here: Host, there: Host, source: Path, destination: Path, stream: Path) -> Result:
    """Predict a pair both ways, then migrate a running guest both ways."""
    allowed = allowances(source)
    code, output = await vmstate_proxy("check", str(stream), "--host", str(destination), "--json", *allowed)
    profile = answer(output if code in (0, 4) else fail(output))
    await there.put(STREAM, stream.read_bytes())
    asked = await vmstate_proxy_in(there, "check", STREAM, "--kvm", "--json", *allowed, check=False)
    kernel = answer(asked.stdout if asked.returncode in (0, 4) else fail(asked.stderr))

    async with running_pair(here, there) as (guest, arriving):
        direct = await arrives(guest, arriving, wire_uri(await arriving.incoming_port()))
    async with (
        running_pair(here, there) as (guest, arriving),
        running_proxy(
            wire_uri(await arriving.incoming_port()), "--host", str(destination), *allowed, "--once"
        ) as proxy,
    ):
        repaired = await arrives(guest, arriving, proxy.uri)
        await proxy.wait_exit()
        [report] = proxy.reports()
    changes = {change["register"]: change["action"] for change in report["changes"]}
    return Result(profile, kernel, direct, repaired, changes if repaired else {})


def allowances(source: Path) -> tuple[str, ...]:
    """Vouch for all that can be vouched for: what is refused then, no policy can let pass."""
    profile = load_profile(source)
    names = [describe(register).name for register in profile.values if describe(register).invariant]
    return ("--allow-midr", f"{profile.midr:#x}", "--allow-register", ",".join(names), *ANY_LOSS)


@asynccontextmanager
async def running_pair(here: Host, there: Host) -> AsyncIterator[tuple[Vm, Vm]]:
    """Run a guest that counts, and a QEMU that waits for it."""
    async with (
        here.guest(name="source", image=counter_guest()) as guest,
        there.guest(name="destination", incoming="tcp:127.0.0.1:0") as arriving,
    ):
        await guest.wait_counter_moves()
        yield guest, arriving


async def arrives(guest: Vm, arriving: Vm, uri: str) -> bool:
    """Migrate; tell whether the guest counts on over there. If it does not, it has to count on here."""
    await guest.migrate(uri)
    if (await guest.wait_migration()).status == "completed":
        left = await guest.counter()
        expect(await arriving.wait_counter_moves() > left, wanted=True)
        return True
    await guest.wait_counter_moves()
    expect(await guest.status(), "running")
    return False


def answer(document: str) -> Answer:
    """Read what `check --json` printed."""
    parsed: dict[str, Any] = json.loads(document)
    actions = {verdict["register"]: verdict["action"] for verdict in parsed["verdicts"]}
    return Answer(parsed["direct"], parsed["goes"], actions)


def cell(result: Result) -> str:
    """A pair in a few words."""
    if result.problem is not None:
        return f"**wrong**: {result.problem}"
    if result.direct:
        return "as it is"
    if result.repaired:
        swapped, dropped = len(result.kernel.named("swap")), len(result.kernel.named("drop"))
        return f"{swapped} swapped" + (f", {dropped} left out" if dropped else "")
    return "refused"


def write(results: dict[tuple[str, str], Result]) -> None:
    """Write the table and the kernels' verdicts."""
    names = list(dict.fromkeys(source for source, _ in results))
    wrong = sum(result.problem is not None for result in results.values())
    lines = [
        HEAD,
        f"Of {len(results)} pairs, {wrong} came out otherwise than predicted.",
        "",
        "Hosts: " + "; ".join(f"{suite} is {what}" for suite, what in SUITES.items()) + ".",
        "",
        "| from \\ to | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for source in names:
        cells = [cell(results[source, destination]) if source != destination else "" for destination in names]
        lines.append(f"| **{source}** | " + " | ".join(cells) + " |")
    lines += ["", "What was refused, and so cannot be repaired:", ""]
    reasons: dict[str, list[str]] = {}
    for (source, destination), result in results.items():
        refused = ", ".join(result.kernel.named("refuse"))
        if refused:
            reasons.setdefault(refused, []).append(f"{source} to {destination}")
    lines += [f"- {refused}: {', '.join(pairs)}" for refused, pairs in reasons.items()] or ["- nothing"]
    TABLE.write_text("\n".join(lines) + "\n")
    verdicts = {f"{source} {destination}": result.kernel.actions for (source, destination), result in results.items()}
    VERDICTS.write_text(json.dumps(verdicts, indent=1) + "\n")


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, flush=True)


def expect(found: object, wanted: object) -> None:
    """Raise unless what was found is what was wanted."""
    if found != wanted:
        raise LabError(f"{wanted!r} was expected, not {found!r}")


def fail(output: str) -> str:
    """Raise with what a command said."""
    raise LabError(output)


if __name__ == "__main__":
    sys.exit(trio.run(main))
