"""Baselines: the ways to start guests that bring hosts together, and what they cost."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from formats.arm.sysreg import MIDR_EL1, parse_register
from formats.arm.vcpu_features import MARKS, VcpuFeature
from proxy.fleet.baseline import Baseline, Level, find_baselines, ways_to_start
from proxy.fleet.host import FleetHost
from proxy.fleet.matrix import judge_fleet, judges_of
from proxy.fleet.page import render
from proxy.hosts.profile import HostProfile, Variant
from proxy.hosts.profile_file import load_profile
from proxy.hosts.profile_text import write_profile
from proxy.policy.policy import Policy
from tests.captures import CAPTURES
from tests.proxy.fleet.test_matrix import matrix, nothing
from tests.proxy.helpers import pairing

if TYPE_CHECKING:
    from pathlib import Path

PFR0 = parse_register("ID_AA64PFR0_EL1")
ZCR = MARKS[VcpuFeature.SVE]
SVE_FIELD = 1 << 32
BARE = replace(
    load_profile(CAPTURES / "hosts" / "trixie-n1.toml"), variants=(), taken=None, all_kinds=True, qemu="10.0.13"
)
assert BARE.others is not None
NEWER = replace(BARE, values=BARE.values | {MIDR_EL1: 0x414FD0C2})
WITH_SVE = replace(
    BARE,
    values=BARE.values | {PFR0: BARE.values[PFR0] | SVE_FIELD},
    others=BARE.others | {ZCR},
    vcpu_features=(*(BARE.vcpu_features or ()), "SVE"),
    sve_vector_lengths=(16, 32),
    variants=(Variant(BARE.vcpu_features or (), {PFR0: BARE.values[PFR0]}, absent=frozenset({ZCR})),),
)


def baselines(hosts: list[FleetHost], policy: Policy) -> list[Baseline]:
    return find_baselines(hosts, judges_of(hosts, policy))


def fleet(**profiles: HostProfile) -> list[FleetHost]:
    return [FleetHost(name, profile) for name, profile in profiles.items()]


def test_hosts_that_are_alike_need_nothing() -> None:
    (found,) = baselines(fleet(one=BARE, two=BARE), Policy())
    assert (found.start.qemu, found.hosts, found.level, found.allowed) == ("-cpu host", ("one", "two"), 0, True)
    assert found.in_short() == "nothing changes"
    assert found.costs == ()


def test_a_processor_id_alone_has_to_be_vouched_for() -> None:
    hosts = fleet(one=BARE, two=NEWER)
    (found,) = baselines(hosts, Policy())
    assert (found.level, set(found.changes), found.allowed) == (Level.MIDR, {MIDR_EL1}, False)
    assert found.in_short() == "MIDR_EL1 alone changes, which the policy does not allow"
    assert BARE.midr is not None
    (found,) = baselines(hosts, Policy((pairing(BARE.midr), pairing(0x414FD0C2))))
    assert found.allowed
    assert found.in_short() == "MIDR_EL1 alone changes"


def test_a_feature_that_one_host_lacks_is_turned_off() -> None:
    hosts = fleet(one=BARE, two=WITH_SVE)
    assert ways_to_start(hosts) == [(), ("pmu",), ("sve",), ("pmu", "sve")]
    (found,) = baselines(hosts, Policy())
    assert (found.start.off, found.hosts, found.level) == (("sve",), ("one", "two"), Level.NOTHING)
    assert found.as_dict()["start"] == {
        "qemu": "-cpu host,sve=off",
        "libvirt": "<cpu mode='host-passthrough'><feature policy='disable' name='sve'/></cpu>",
    }
    (cost,) = found.costs
    assert (cost.name, cost.fields) == ("sve", ("ID_AA64PFR0_EL1.SVE 1 -> 0",))


def test_vectors_of_other_lengths_bring_no_hosts_together_until_there_are_none() -> None:
    short_ones = replace(WITH_SVE, sve_vector_lengths=(16,))
    (found,) = baselines(fleet(one=WITH_SVE, two=short_ones), Policy())
    assert found.start.off == ("sve",)
    slower = replace(BARE, timer_frequency=1000)
    assert baselines(fleet(one=BARE, two=replace(slower, timer_frequency=2000)), Policy()) == []


def test_a_qemu_that_cannot_turn_it_off_is_in_no_such_group() -> None:
    pauth = replace(
        BARE,
        others=(BARE.others or frozenset()) | {MARKS[VcpuFeature.PTRAUTH_ADDRESS], MARKS[VcpuFeature.PTRAUTH_GENERIC]},
        vcpu_features=(*(BARE.vcpu_features or ()), "PTRAUTH_ADDRESS", "PTRAUTH_GENERIC"),
    )
    without = Variant(
        BARE.vcpu_features or (),
        {},
        absent=frozenset({MARKS[VcpuFeature.PTRAUTH_ADDRESS], MARKS[VcpuFeature.PTRAUTH_GENERIC]}),
    )
    pauth = replace(pauth, variants=(without,))
    assert [one.start.off for one in baselines(fleet(one=BARE, two=pauth), Policy())] == [("pauth",)]
    assert baselines(fleet(one=BARE, two=replace(pauth, qemu="5.2.0")), Policy()) == []


def test_a_profile_that_knows_one_kind_is_in_no_group_of_others() -> None:
    assert baselines(fleet(one=BARE, two=replace(WITH_SVE, variants=None)), Policy()) == []


def test_they_are_printed_and_on_the_page(tmp_path: Path) -> None:
    for name, profile in (("one", BARE), ("two", WITH_SVE)):
        (tmp_path / f"{name}.toml").write_text(write_profile(profile))
    files = tmp_path / "one.toml", tmp_path / "two.toml"
    printed = matrix(*files).stdout
    assert "  -cpu host,sve=off: one, two: nothing changes\n" in printed
    assert re.search(r"sve=off: no scalable vectors: .* \(ID_AA64PFR0_EL1\.SVE 1 -> 0\)\n", printed)
    (found,) = json.loads(matrix(*files, "--json").stdout)["baselines"]
    assert (found["hosts"], found["changes"], found["allowed"]) == (["one", "two"], [], True)
    page = render(judge_fleet(fleet(one=BARE, two=WITH_SVE), Policy(), nothing), "")
    assert "<strong>-cpu host,sve=off</strong>one, two" in page
    assert "&lt;feature policy=&#x27;disable&#x27; name=&#x27;sve&#x27;/&gt;" in page
    (tmp_path / "three.toml").write_text(write_profile(replace(BARE, timer_frequency=1)))
    assert "No flags of -cpu host" in matrix(files[0], tmp_path / "three.toml").stdout
