"""Every ordered pair of lab hosts, with guests of every kind: what `check` predicts, and what happens.

`make matrix` surveys the hosts into captures/hosts/ (see `tests.lab.matrix_hosts`), then moves a running guest between
every two, directly and through the proxy, and writes docs/matrix.md. It takes an hour, and can be stopped at any time:
what it found so far stays in the lab's cache, and the next run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

import trio

from formats.arm.sysreg import describe
from proxy.hosts.profile_file import load_profile
from tests.lab.cache import cache_folder
from tests.lab.guest import counter_guest
from tests.lab.images import MACHINES, SUITES
from tests.lab.matrix_hosts import PLACES, ROOT, Place, ask, host_at, publish, recorded, survey
from tests.lab.pool import running_lab
from tests.lab.proxy import running_proxy, vmstate_proxy
from tests.lab.qmp import LabError
from tests.lab.vm import VmExitedError, wire_uri

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.lab.pool import Lab
    from tests.lab.vm import Vm

TABLE = ROOT / "docs" / "matrix.md"
PATIENCE = 40.0
"""Seconds until a guest counts on; many hosts share this machine."""
WHICH = f"only these, and publish nothing; of {', '.join(map(str, PLACES))}"
ANY_LOSS = ("--allow-loss", "any", "--allow-erratum", "any")
HEAD = """\
# Who can go where, in the lab

Written by `make matrix`: a running guest is moved between every two of fourteen emulated arm64 hosts, directly and
through the proxy, with a policy that vouches for all that can be vouched for. Before, `check` predicts both, by the
destination's profile and by its kernel; a cell says **wrong** where the two differ in any register, where prediction
and outcome differ, or where the proxy changed anything else than predicted. Rows are sources, columns destinations;
each table is for guests of one kind, whose destination is started as `check` says.

- *as it is*: arrives directly; the proxy passes it on unchanged.
- *n swapped, m left out*: refused directly; arrives through the proxy after so many registers were changed.
- *refused*: refused directly; the proxy ends the migration, too, and the guest runs on at the source.

On hosts of bullseye, whose Python is too old for this project, no kernel is asked; their profiles are those that the
script of `host probe --script` prints. On all others it prints what `host probe` does.
"""


@dataclass(frozen=True, slots=True)
class Result:
    """A guest and a pair of hosts: the predictions, and the outcomes.

    Attributes:
        profile: what `check --host` said: direct, goes, and what becomes of each register.
        kernel: what the destination's kernel said; None where it was not asked.
        direct: whether the guest arrived without a proxy.
        repaired: whether it arrived through the proxy.
        changes: what the proxy reported to have done, by register.
    """

    profile: dict[str, Any]
    kernel: dict[str, Any] | None
    direct: bool
    repaired: bool
    changes: dict[str, str]

    @property
    def problem(self) -> str | None:
        """Where prediction and outcome differ; None when they agree."""
        if self.kernel is not None and self.profile != self.kernel:
            ours, theirs = self.profile["actions"], self.kernel["actions"]
            differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            return f"profile and kernel disagree on {', '.join(differing) or 'the whole'}"
        predicted = self.profile["direct"], self.profile["goes"]
        if predicted != (self.direct, self.repaired):
            return f"predicted {predicted}; came out {self.direct, self.repaired}"
        expected = {name: done for name, done in self.profile["actions"].items() if done in ("swap", "drop")}
        if self.repaired and self.changes != expected:
            return "the proxy did something else than predicted"
        return None

    def named(self, action: str) -> list[str]:
        """The registers that an action is taken on."""
        return [name for name, taken in self.profile["actions"].items() if taken == action]


class Journal:
    """The results so far, one line of JSON each; they hold for the profiles that they were found with."""

    def __init__(self) -> None:
        self._path = cache_folder() / "matrix.jsonl"
        self.results: dict[str, Result] = {}
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                entry = json.loads(line)
                self.results[entry["key"]] = Result(**entry["result"])

    def add(self, key: str, result: Result) -> None:
        """Keep a result."""
        self.results[key] = result
        with self._path.open("a") as file:
            file.write(json.dumps({"key": key, "result": asdict(result)}) + "\n")

    def forget(self) -> None:
        """Begin anew."""
        self._path.unlink(missing_ok=True)
        self.results.clear()


async def main(options: argparse.Namespace) -> int:
    """Take every pair; return 1 if one came out otherwise than predicted."""
    places = [place for place in PLACES if not options.hosts or str(place) in options.hosts]
    streams = cache_folder() / "matrix-streams"
    journal = Journal()
    began = time.monotonic()
    with contextmanager(running_lab)() as lab:
        if options.again:
            journal.forget()
        if options.again or options.survey or not streams.exists():
            await look(lab, places, streams)
        if options.survey:
            return 0
        for place, other in permutations(places, 2):
            for cpu in place.cpus:
                key = f"{place} {cpu} {other}"
                if key in journal.results:
                    continue
                result = await examine(lab, place, other, cpu, streams)
                journal.add(key, result)
                say(f"{key}: {cell(result)}")
    if places == PLACES:
        write(places, journal.results)
    wrong = sum(result.problem is not None for result in journal.results.values())
    minutes = (time.monotonic() - began) / 60
    say(f"{len(journal.results)} pairs, {wrong} otherwise than predicted, {minutes:.0f} minutes in this run")
    return 1 if wrong else 0


async def look(lab: Lab, places: list[Place], streams: Path) -> None:
    """Survey the hosts, record a guest of each kind on each, and ask each kernel about all others' guests."""
    streams.mkdir(exist_ok=True)
    guests: dict[str, bytes] = {}
    for place in places:
        host = await host_at(lab, place)
        own = {cpu: await recorded(host, cpu) for cpu in place.cpus}
        await survey(host, place)
        for cpu, stream in own.items():
            guests[f"{place} {cpu}"] = stream
            (streams / f"{place} {cpu}").write_bytes(stream)
        say(f"{place} is surveyed")
    verdicts = {}
    answers: dict[str, dict[str, Any]] = {}
    for place in places:
        if place.asks:
            others = {name: stream for name, stream in guests.items() if name.split()[0] != str(place)}
            for name, answer in (await ask(await host_at(lab, place), others)).items():
                answers[f"{name} {place}"] = answer
                verdicts[f"{name} {place}"] = answer["actions"]
            say(f"the kernel of {place} was asked about {len(others)} guests")
    (streams / "answers.json").write_text(json.dumps(answers))
    if places == PLACES:
        publish(places, verdicts)


async def examine(lab: Lab, place: Place, other: Place, cpu: str, streams: Path) -> Result:
    """Predict a pair by its profile, then migrate a running guest both ways."""
    here, there = await host_at(lab, place), await host_at(lab, other)
    stream = streams / f"{place} {cpu}"
    allowed = allowances(place.profile)
    code, output = await vmstate_proxy("check", str(stream), "--host", str(other.profile), "--json", *allowed)
    if code not in (0, 4):
        raise LabError(output)
    parsed = json.loads(output)
    actions = {verdict["register"]: verdict["action"] for verdict in parsed["verdicts"]}
    profile = {"direct": parsed["direct"], "goes": parsed["goes"], "actions": actions}
    arriving_cpu = cpu if parsed["start"] is None else parsed["start"]["qemu"].removeprefix("-cpu ")
    kernel = json.loads((streams / "answers.json").read_text()).get(f"{place} {cpu} {other}")
    machine = MACHINES.get(place.suite)

    @asynccontextmanager
    async def running_pair() -> AsyncIterator[tuple[Vm, Vm]]:
        async with (
            here.guest(name="source", cpu=cpu, machine=machine, image=counter_guest()) as guest,
            there.guest(name="destination", cpu=arriving_cpu, machine=machine, incoming="tcp:127.0.0.1:0") as arriving,
        ):
            await guest.wait_counter_moves(PATIENCE)
            yield guest, arriving

    async with running_pair() as (guest, arriving):
        try:
            direct = await arrives(guest, arriving, wire_uri(await arriving.incoming_port()))
        except VmExitedError:
            # QEMU before 6.1 may give its guest up to a destination that is just dying; see `proxy.old_source`.
            direct = False
    async with (
        running_pair() as (guest, arriving),
        running_proxy(
            wire_uri(await arriving.incoming_port()), "--host", str(other.profile), *allowed, "--once"
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


async def arrives(guest: Vm, arriving: Vm, uri: str) -> bool:
    """Migrate; tell whether the guest counts on over there. If it does not, it has to count on here."""
    await guest.migrate(uri)
    if (await guest.wait_migration(PATIENCE)).status == "completed":
        left = await guest.counter()
        if await arriving.wait_counter_moves(PATIENCE) <= left:
            raise LabError(f"{arriving.name} counts anew")
        return True
    await guest.wait_counter_moves(PATIENCE)
    if (status := await guest.status()) != "running":
        raise LabError(f"{guest.name} is {status}")
    return False


def cell(result: Result) -> str:
    """A pair in a few words."""
    if result.problem is not None:
        return f"**wrong**: {result.problem}"
    if result.direct:
        return "as it is"
    if result.repaired:
        swapped, dropped = len(result.named("swap")), len(result.named("drop"))
        return f"{swapped} swapped" + (f", {dropped} left out" if dropped else "")
    return "refused"


def write(places: list[Place], results: dict[str, Result]) -> None:
    """Write a table for each kind of guest."""
    wrong = sum(result.problem is not None for result in results.values())
    lines = [HEAD, f"Of {len(results)} pairs, {wrong} came out otherwise than predicted.", ""]
    lines += ["Hosts: " + "; ".join(f"{suite} is {what}" for suite, what in SUITES.items()) + ".", ""]
    for cpu in dict.fromkeys(cpu for place in places for cpu in place.cpus):
        lines += [f"## Guests with `-cpu {cpu}`", "", "| from \\ to | " + " | ".join(map(str, places)) + " |"]
        lines.append("|---|" + "---|" * len(places))
        for place in places:
            if cpu in place.cpus:
                found = (results.get(f"{place} {cpu} {other}") for other in places)
                lines.append(f"| **{place}** | " + " | ".join("" if one is None else cell(one) for one in found) + " |")
        lines.append("")
    lines += ["What was refused, and so cannot be repaired:", ""]
    reasons: dict[str, list[str]] = {}
    for key, result in results.items():
        if refused := ", ".join(result.named("refuse")):
            reasons.setdefault(refused, []).append(key)
    lines += [f"- {refused}: {'; '.join(pairs)}" for refused, pairs in reasons.items()] or ["- nothing"]
    TABLE.write_text("\n".join(lines) + "\n")


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="make matrix LAB=...", description=__doc__)
    parser.add_argument("--survey", action="store_true", help="survey the hosts and ask their kernels; move no guest")
    parser.add_argument("--again", action="store_true", help="forget what earlier runs found")
    parser.add_argument("--hosts", nargs="+", metavar="HOST", help=WHICH)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(trio.run(main, arguments()))
