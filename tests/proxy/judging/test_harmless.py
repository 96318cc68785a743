"""The table of registers that a guest does not miss, and what becomes of them between two recorded kernels."""

from __future__ import annotations

import io
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from formats.arm.id_fields import fields_of
from formats.arm.sysreg import Kind, describe, parse_register
from proxy.captures.offline import read_vcpus
from proxy.hosts.host_registers import HostRegisters
from proxy.judging.harmless import harmless
from proxy.judging.profile_acceptance import NO_SUCH_REGISTER
from proxy.judging.verdict import Action, Verdict
from tests.proxy.helpers import (
    NAMES,
    NEWER,
    NEWER_DROPPED,
    NEWER_SWAPPED,
    OLDER,
    ROOT,
    capture,
    downgrade,
    judge,
    profile,
    short,
    value,
    with_value,
    without,
)

if TYPE_CHECKING:
    from formats.arm.register_list import RegisterList

CNTP_CTL_EL0, CNTPCT_EL0, CNTP_CVAL_EL0 = map(parse_register, ("CNTP_CTL_EL0", "CNTPCT_EL0", "CNTP_CVAL_EL0"))
CLIDR_EL1, MMFR3 = parse_register("CLIDR_EL1"), parse_register("ID_AA64MMFR3_EL1")
CCSIDRS = [parse_register(f"CCSIDR_EL1[{index}]") for index in range(14)]
ENTRIES: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "proxy/judging/harmless.toml").read_text(encoding="utf-8"))


def vcpu(stream: bytes) -> RegisterList:
    (registers,) = read_vcpus(io.BytesIO(stream))
    return registers


def verdicts(stream: bytes, **options: Any) -> dict[str, Verdict]:  # noqa: ANN401
    """Return what becomes of a newer kernel's registers at the older one, by name."""
    return {verdict.name: verdict for verdict in downgrade(**options).judge(vcpu(stream))}


def names(found: dict[str, Verdict], action: Action) -> list[str]:
    return [name for name, verdict in found.items() if verdict.action is action]


# --- the table


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_whole(name: str) -> None:
    entry = ENTRIES[name]
    assert entry.keys() <= {"zero", "of", "reason"}
    assert describe(parse_register(name)).known
    assert describe(parse_register(entry.get("of", name))).known
    assert type(entry["zero"]) is int
    assert 0 < entry["zero"] < 1 << 64
    assert entry["reason"].strip() == entry["reason"] != ""
    assert "\n" not in entry["reason"]


def test_every_entry_is_in_the_table() -> None:
    assert len(harmless()) == len(ENTRIES)
    assert harmless().keys() == {parse_register(name) for name in ENTRIES}


@pytest.mark.parametrize("index", range(14))
def test_a_cache_is_missed_where_its_level_has_it(index: int) -> None:
    """Three bits a level: 0 none, 1 instructions, 2 data, 3 both apart, 4 unified."""
    entry = harmless()[CCSIDRS[index]]
    assert entry.of == CLIDR_EL1
    having = {1, 3} if index % 2 else {2, 3, 4}
    for kind in range(5):
        assert entry.holds({CLIDR_EL1: kind << 3 * (index // 2)}.get) == (kind not in having)
        others = 0o3333333 & ~(7 << 3 * (index // 2))
        assert entry.holds({CLIDR_EL1: others | kind << 3 * (index // 2)}.get) == (kind not in having)


@pytest.mark.parametrize(
    ("register", "feature"),
    [("TCR2_EL1", "TCRX"), ("PIRE0_EL1", "S1PIE"), ("PIR_EL1", "S1PIE"), ("POR_EL0", "S1POE"), ("POR_EL1", "S1POE")],
)
def test_a_register_of_a_feature_is_missed_where_the_processor_has_it(register: str, feature: str) -> None:
    entry = harmless()[parse_register(register)]
    (field,) = [field for field in fields_of(MMFR3) if field.name == feature]
    assert (entry.of, entry.zero) == (MMFR3, field.mask)


@pytest.mark.parametrize("register", [id_ for id_ in harmless() if describe(id_).kind is Kind.FEATURE_BITMAP])
@pytest.mark.parametrize("bit", [0, 1, 31, 32, 62, 63])
def test_every_hypercall_counts(register: int, bit: int) -> None:
    assert harmless()[register].holds({register: 1 << bit}.get) is False
    assert harmless()[register].holds({register: 0}.get) is True


def test_a_value_that_is_not_known_answers_nothing() -> None:
    assert all(entry.holds(dict[int, int]().get) is None for entry in harmless().values())
    assert harmless()[CNTPCT_EL0].condition == "CNTP_CTL_EL0 & 0x1 == 0"


# --- from Linux 6.12 to 6.1


def test_what_becomes_of_a_newer_kernels_registers() -> None:
    found = verdicts(capture(NEWER))
    assert names(found, Action.SWAP) == NEWER_SWAPPED
    assert names(found, Action.DROP) == NEWER_DROPPED
    assert len(NEWER_DROPPED) == 17
    assert len(found) == len(NEWER_SWAPPED) + len(NEWER_DROPPED)
    for name in NEWER_DROPPED:
        verdict = found[name]
        assert verdict.rule == f"harmless: {harmless()[verdict.register].reason}"
        assert (verdict.old, verdict.new) == (value(capture(NEWER), verdict.register), None)
        assert verdict.why == NO_SUCH_REGISTER


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_dropped_that_the_destination_has(name: str) -> None:
    assert judge(host=profile(name)).judge(read_vcpus(io.BytesIO(capture(name)))[0]) == []


def test_to_the_newer_kernel_nothing_is_dropped() -> None:
    found = judge(host=profile(NEWER)).judge(vcpu(capture(OLDER)))
    assert {verdict.action for verdict in found} == {Action.ACCEPT, Action.REFUSE}
    assert [verdict.name for verdict in found if verdict.action is Action.REFUSE] == ["ID_AA64DFR0_EL1"]


@pytest.mark.parametrize("control", [0x1, 0x3, 0x5, 0x7])
def test_an_enabled_physical_timer_is_missed(control: int) -> None:
    found = verdicts(with_value(short(NEWER), CNTP_CTL_EL0, control))
    timer = ["CNTPCT_EL0", "CNTP_CTL_EL0", "CNTP_CVAL_EL0"]
    assert names(found, Action.REFUSE) == timer
    for name in timer:
        assert f"--allow-drop {name}" in found[name].advice
        assert found[name].why == NO_SUCH_REGISTER
    assert names(found, Action.DROP) == [name for name in NEWER_DROPPED if name not in timer]


@pytest.mark.parametrize("control", [0x0, 0x2, 0x4, 0x6])
def test_a_disabled_one_is_not(control: int) -> None:
    assert names(verdicts(with_value(short(NEWER), CNTP_CTL_EL0, control)), Action.DROP) == NEWER_DROPPED


@pytest.mark.parametrize(("level", "kind"), [(2, 1), (2, 2), (2, 3), (2, 4), (3, 4), (7, 3)])
def test_a_cache_that_the_processor_claims_is_missed(level: int, kind: int) -> None:
    clidr = value(short(NEWER), CLIDR_EL1) & ~(7 << 3 * (level - 1)) | kind << 3 * (level - 1)
    found = verdicts(with_value(short(NEWER), CLIDR_EL1, clidr))
    claimed = []
    if kind in (2, 3, 4):
        claimed.append(f"CCSIDR_EL1[{2 * level - 2}]")
    if kind in (1, 3):
        claimed.append(f"CCSIDR_EL1[{2 * level - 1}]")
    # The unified cache of level 2 is one that the destination has.
    assert names(found, Action.REFUSE) == [name for name in claimed if name != "CCSIDR_EL1[2]"]


@pytest.mark.parametrize(
    ("bits", "missed"), [(0x1, ["TCR2_EL1"]), (0x100, ["PIRE0_EL1", "PIR_EL1"]), (0x10, []), (0x1000, [])]
)
def test_a_feature_that_the_processor_has_is_missed(bits: int, missed: list[str]) -> None:
    stream = with_value(short(NEWER), MMFR3, value(short(NEWER), MMFR3) | bits)
    refused = names(verdicts(stream), Action.REFUSE)
    assert [name for name in refused if name != "ID_AA64MMFR3_EL1"] == missed


@pytest.mark.parametrize(
    ("of", "missed"),
    [
        (CNTP_CTL_EL0, ["CNTPCT_EL0", "CNTP_CVAL_EL0"]),
        (CLIDR_EL1, NEWER_DROPPED[:11]),
        (MMFR3, ["TCR2_EL1", "PIRE0_EL1", "PIR_EL1"]),
    ],
    ids=["timer", "caches", "features"],
)
def test_what_the_stream_does_not_say_is_not_taken_to_be_harmless(of: int, missed: list[str]) -> None:
    """A condition on a register that is not in the stream does not hold."""
    found = verdicts(without(short(NEWER), {of}))
    assert names(found, Action.REFUSE) == missed
    assert all("harmless" not in found[name].advice for name in missed)


def test_a_guest_that_is_yet_to_start_may_come_if_the_conditions_hold() -> None:
    """Of what belongs to the guest, a host's profile knows only that it is there."""
    found = {verdict.name: verdict for verdict in downgrade().judge(HostRegisters(profile(NEWER)))}
    assert names(found, Action.DROP) == NEWER_DROPPED
    assert found["CNTP_CVAL_EL0"].rule == (
        "harmless if CNTP_CTL_EL0 & 0x1 == 0 then: the guest has its physical timer disabled"
    )
    assert found["CCSIDR_EL1[3]"].rule == "harmless: the processor has no such cache"
    assert found["CNTPCT_EL0"].old is None


def test_the_policy_may_forbid_it() -> None:
    found = verdicts(short(NEWER), drop_harmless=False)
    assert names(found, Action.REFUSE) == NEWER_DROPPED
    found = verdicts(short(NEWER), drop_harmless=False, drop={CNTPCT_EL0: "listed"})
    assert names(found, Action.DROP) == ["CNTPCT_EL0"]
    assert found["CNTPCT_EL0"].rule == "listed"


def test_the_policy_may_allow_more() -> None:
    stream = with_value(short(NEWER), CNTP_CTL_EL0, 1)
    found = verdicts(stream, drop=dict.fromkeys((CNTP_CTL_EL0, CNTPCT_EL0, CNTP_CVAL_EL0), "listed"))
    assert names(found, Action.REFUSE) == []
    assert {name: verdict.rule for name, verdict in found.items() if "listed" in verdict.rule}.keys() >= {
        "CNTPCT_EL0",
        "CNTP_CTL_EL0",
        "CNTP_CVAL_EL0",
    }
