"""Fleets: every pair judged, groups, the command line, and a page of bounded size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1, describe
from proxy.fleet.host import FleetHost
from proxy.fleet.matrix import in_short, judge_fleet, steps_of
from proxy.fleet.page import render
from proxy.hosts.profile import HostProfile
from proxy.hosts.profile_file import load_profile
from proxy.hosts.profile_text import write_profile
from proxy.policy.policy import Policy
from tests.captures import CAPTURES
from tests.proxy.helpers import EVERYTHING, ROOT, pairing, rules
from tests.proxy.live.test_hot_path import counted

if TYPE_CHECKING:
    from pathlib import Path

ALL_HOSTS = [FleetHost(path.stem, load_profile(path)) for path in sorted((CAPTURES / "hosts").glob("*.toml"))]
FILES = [
    CAPTURES / "hosts" / f"{suite}-{processor}.toml"
    for suite in ("bookworm", "trixie")
    for processor in ("a57", "a72", "n1")
]
"""Six of them, of two kernels and three processors."""
HOSTS = [FleetHost(path.stem, load_profile(path)) for path in FILES]
VERDICTS = json.loads((CAPTURES / "hosts" / "verdicts.json").read_text())
INVARIANT = {register for host in ALL_HOSTS for register in host.profile.values if describe(register).invariant}
ALL_LISTED = Policy(
    tuple(pairing(host.profile.midr) for host in ALL_HOSTS),
    rules(dict.fromkeys(sorted(INVARIANT), "listed")),
    accept=EVERYTHING,
)
ANY_LOSS = ("--allow-loss", "any", "--allow-erratum", "any")
OPTIONS = (*ANY_LOSS, "--allow-midr", "cortex-a57,cortex-a72,neoverse-n1", "--allow-register")
ALLOWED = (*OPTIONS, ",".join(describe(register).name for register in sorted(INVARIANT)))


def nothing(_: int) -> None:
    """Take no progress."""


def matrix(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", "host", "matrix", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_pairs_are_what_the_kernels_said() -> None:
    steps: list[int] = []
    fleet = judge_fleet(ALL_HOSTS, ALL_LISTED, steps.append)
    # Every pair, and every way to start guests with or without PMU, SVE and pointer authentication.
    assert steps == [1] * (14 * 13 + 8)
    assert len(steps) == steps_of(ALL_HOSTS)
    for (source, destination), answer in fleet.answers.items():
        found = {verdict.name: verdict.action.value for verdict in answer.verdicts}
        # bullseye's Python does not run what asks its kernel.
        assert destination.startswith("bullseye") or found == VERDICTS[f"{source} host {destination}"]


def test_guests_that_start_with_less_bring_more_hosts_together() -> None:
    policy = replace(ALL_LISTED, accept=replace(EVERYTHING, lost_features=frozenset()))
    fleet = judge_fleet(ALL_HOSTS, policy, nothing)
    assert not any({"sid-n1", "sid-v1"} <= set(group) for group in fleet.groups())
    (found,) = [one for one in judge_fleet(ALL_HOSTS, ALL_LISTED, nothing).baselines if "sid-v1" in one.hosts]
    assert (found.start.qemu, found.hosts) == ("-cpu host,pauth=off,sve=off", ("sid-n1", "sid-v1"))
    assert {"ID_AA64PFR0_EL1.SVE 1 -> 0"} < {field for cost in found.costs for field in cost.fields}


def test_groups_are_of_hosts_that_reach_each_other() -> None:
    fleet = judge_fleet(HOSTS, ALL_LISTED, nothing)
    assert fleet.groups() == [
        ["bookworm-a57", "bookworm-a72", "trixie-a57", "trixie-a72"],
        ["bookworm-n1", "trixie-n1"],
    ]
    assert fleet.destinations("bookworm-n1") == ["trixie-n1"]
    assert len(fleet.destinations("trixie-a57")) == 5
    # One way is not enough for a group.
    assert judge_fleet(HOSTS, Policy(), nothing).groups() == [[host.name] for host in HOSTS]


def test_like_hosts_are_judged_once() -> None:
    hosts = [
        FleetHost(f"{host.name}-{number}", replace(host.profile, description=f"number {number}"))
        for host in HOSTS
        for number in range(10)
    ]
    fleet = judge_fleet(hosts, ALL_LISTED, nothing)
    assert len(fleet.answers) == 60 * 59
    # Of six kinds: each to each other, and to its like.
    assert len({id(answer) for answer in fleet.answers.values()}) == 36
    assert in_short(fleet.answers["trixie-n1-0", "trixie-n1-1"]) == "as it is"
    page = render(fleet, "all listed")
    assert len(page) < len(render(judge_fleet(HOSTS, ALL_LISTED, nothing), "")) + 60 * 60 * 300


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "</template></script>", '"><img src=x>', "$style ${x}"]
)
def test_what_profiles_say_is_escaped(hostile: str) -> None:
    hosts = [
        FleetHost(f"{hostile}{index}", replace(host.profile, description=hostile, kernel=hostile))
        for index, host in enumerate(HOSTS[:2])
    ]
    page = render(judge_fleet(hosts, Policy(), nothing), hostile)
    bare = render(judge_fleet(HOSTS[:2], Policy(), nothing), "")
    for tag in ("<script", "</script", "<img", "</template"):
        assert page.count(tag) == bare.count(tag)


def test_the_page_asks_for_nothing() -> None:
    page = render(judge_fleet(HOSTS, ALL_LISTED, nothing), "")
    assert re.findall(r"(?:https?:)?//[a-z]", page) == []
    assert re.findall(r"\b(?:src|href|url)\s*[=(]", page) == []
    assert "default-src 'none'" in page


def test_the_table(tmp_path: Path) -> None:
    done = matrix(*FILES, *ALLOWED)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["from", "\\", "to", *(host.name for host in HOSTS)]
    assert re.split(r"\s{2,}", lines[6]) == [
        "trixie-n1", "refused", "refused", "5 swapped, 17 left out", "refused", "refused", "-",
    ]  # fmt: skip
    assert "  bookworm-n1, trixie-n1" in lines
    done = matrix(*FILES, "--html", tmp_path / "fleet.html")
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "fleet.html").read_text().startswith("<!doctype html>")


def test_json() -> None:
    found = json.loads(matrix(*FILES, "--json", *ALLOWED).stdout)
    assert found["hosts"][0]["processor"] == "Arm Cortex-A57 r1p3"
    assert found["hosts"][2]["destinations"] == ["trixie-n1"]
    assert found["groups"][1] == ["bookworm-n1", "trixie-n1"]
    (pair,) = [one for one in found["pairs"] if (one["source"], one["destination"]) == ("trixie-n1", "bookworm-n1")]
    assert (pair["direct"], pair["goes"]) == (False, True)
    assert {verdict["action"] for verdict in pair["verdicts"]} == {"swap", "drop"}


def test_profiles_that_do_not_do(tmp_path: Path) -> None:
    good = CAPTURES / "hosts" / "trixie-n1.toml"
    partial = tmp_path / "partial.toml"
    partial.write_text(write_profile(HostProfile("", {MIDR_EL1: 1})))
    other = tmp_path / "trixie-n1.toml"
    other.write_bytes(good.read_bytes())
    for arguments, says in (
        ((good, partial), "does not list all registers"),
        ((good, other), "two profiles are called trixie-n1"),
        ((good, tmp_path / "none.toml"), "No such file"),
        ((good,), "two profiles at least"),
    ):
        done = matrix(*arguments)
        assert done.returncode == 2
        assert says in done.stderr


def test_calls_for_a_pair() -> None:
    """Hosts that are alike are judged once; what is done for each pair of them is little."""

    def calls(each: int) -> int:
        hosts = [FleetHost(f"{host.name}-{number}", host.profile) for host in HOSTS[:2] for number in range(each)]
        with counted() as found:
            judge_fleet(hosts, ALL_LISTED, nothing)
        return found.total()

    calls(1)  # what is loaded once
    few, many = calls(4), calls(12)
    pairs = 24 * 23 - 8 * 7
    assert (many - few) / pairs <= 40
