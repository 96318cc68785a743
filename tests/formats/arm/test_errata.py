"""Errata of processors: the table, and examples held against Linux."""

import re
import tomllib
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.arm.errata import Erratum, Scope, all_errata, errata_of, new_errata, unguarded_errata
from formats.arm.midr import core_names
from formats.arm.processor_sets import parse_processors

TABLE = Path(__file__).parents[3] / "formats" / "arm" / "errata.toml"
KEYS = {"summary", "vendor", "scope", "kconfig", "workaround", "cores", "cores_but"}

A57_R1P0, A57_R1P2, A57_R1P3 = 0x411FD070, 0x411FD072, 0x411FD073
A72_R0P3 = 0x410FD083
A53_R0P4 = 0x410FD034
N1_R2P0, N1_R3P1, N1_R4P0, N1_R4P1 = 0x412FD0C0, 0x413FD0C1, 0x414FD0C0, 0x414FD0C1
V1_R1P1, V2_R0P1 = 0x411FD401, 0x410FD4F1


@cache
def raw_entries() -> tuple[dict[str, Any], ...]:
    return tuple(tomllib.loads(TABLE.read_text(encoding="utf-8"))["erratum"])


def cores(entry: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = entry["cores"] if "cores" in entry else entry["cores_but"]
    return found


def midr(text: str) -> int:
    """Give the MIDR_EL1 of `core rNpM`."""
    found = parse_processors(text)
    assert found.first == found.last
    return found.implementer << 24 | found.first[0] << 20 | 0xF << 16 | found.part << 4 | found.first[1]


def numbers(errata: tuple[Erratum, ...]) -> set[str]:
    return {erratum.number for erratum in errata}


def erratum(number: str) -> Erratum:
    (found,) = (found for found in all_errata() if found.number == number)
    return found


any_midr = st.one_of(
    st.builds(
        lambda key, variant, revision: key[0] << 24 | variant << 20 | 0xF << 16 | key[1] << 4 | revision,
        st.sampled_from(sorted(core_names())),
        st.integers(0, 15),
        st.integers(0, 15),
    ),
    st.integers(0, 2**32 - 1),
)


# --- the table


def test_every_entry_says_what_the_reader_understands() -> None:
    assert len(raw_entries()) > 60
    for entry in raw_entries():
        assert entry.keys() <= KEYS
        assert entry.keys() >= {"summary", "scope"}
        assert ("cores" in entry) != ("cores_but" in entry)
        assert all(cores(entry).values())


def test_every_number_stands_there_once() -> None:
    counts = Counter((found.vendor, found.number) for found in all_errata())
    assert {key: count for key, count in counts.items() if count > 1} == {}
    assert len(all_errata()) == sum(len(cores(entry)) for entry in raw_entries())


@pytest.mark.parametrize("found", all_errata(), ids=str)
def test_processors_are_known_and_apart_from_each_other(found: Erratum) -> None:
    assert found.processors
    for processors in found.processors:
        assert (processors.implementer, processors.part) in core_names()
        assert (0, 0) <= processors.first <= processors.last <= (15, 15)
    ordered = sorted(found.processors, key=lambda one: (one.implementer, one.part, one.first))
    for lower, upper in pairwise(ordered):
        same_core = (lower.implementer, lower.part) == (upper.implementer, upper.part)
        assert not same_core or lower.last < upper.first


@pytest.mark.parametrize("found", all_errata(), ids=str)
def test_words_are_as_they_are_printed(found: Erratum) -> None:
    assert re.fullmatch(r"[A-Za-z][^\n]{20,110}[^.\n]", found.summary)
    assert re.fullmatch(r"[A-Z0-9a-z_#-]+", found.number)
    assert found.kconfig is None or re.fullmatch(r"[A-Z0-9_]+", found.kconfig)
    assert found.workaround is None or re.fullmatch(r"\w+", found.workaround)
    makers = {maker for maker, _ in core_names().values()}
    assert found.vendor in makers or (found.vendor == "" and found.number.startswith("Spectre"))
    # What nobody numbered has no vendor in front of it.
    assert str(found) == (f"{found.vendor} {found.number}" if found.vendor else found.number)


def test_an_option_has_one_workaround_and_is_named_after_an_erratum_of_it() -> None:
    numbers_of: dict[str, set[str]] = {}
    workarounds: dict[str, set[str | None]] = {}
    for found in all_errata():
        if found.kconfig is not None and not found.number.startswith("Spectre"):
            numbers_of.setdefault(found.kconfig, set()).add(found.number)
            workarounds.setdefault(found.kconfig, set()).add(found.workaround)
    assert {option: names for option, names in workarounds.items() if len(names) != 1} == {}
    assert len(numbers_of) > 50
    for option, of_option in numbers_of.items():
        tail = re.sub(r".*_(ERRATUM|CNP)_", "", option)
        assert tail == "ERRATUM" or any(number.removeprefix("E").lstrip("#") in tail for number in of_option), option


def test_loops_against_branch_history_grow() -> None:
    # A core that needs a longer loop is in all the shorter lists.
    counts = (11, 24, 32, 38, 132)
    lists = [set(erratum("Spectre-BHB").processors)]
    lists += [set(erratum(f"Spectre-BHB-k{count}").processors) for count in counts]
    assert all(longer < shorter for shorter, longer in pairwise(lists))


# --- against Linux


@pytest.mark.parametrize(
    ("number", "affected", "spared"),
    [
        # arch/arm64/kernel/cpu_errata.c: 0,0 to 1,2.
        ("832075", ["cortex-a57 r0p0", "cortex-a57 r0p15", "cortex-a57 r1p2"], ["cortex-a57 r1p3", "cortex-a72 r0p0"]),
        ("834220", ["cortex-a57 r1p0", "cortex-a57 r1p2"], ["cortex-a57 r1p3"]),
        ("1742098", ["cortex-a57 r0p1", "cortex-a57 r15p15"], ["cortex-a57 r0p0", "cortex-a72 r0p1"]),
        ("819472", ["cortex-a53 r0p1"], ["cortex-a53 r0p2"]),
        ("826319", ["cortex-a53 r0p2"], ["cortex-a53 r0p3"]),
        ("843419", ["cortex-a53 r0p4", "brahma-b53 r0p0"], ["cortex-a53 r0p5", "brahma-b53 r0p1"]),
        ("845719", ["kryo-2xx-silver r10p4"], ["kryo-2xx-silver r10p3", "kryo-2xx-silver r10p5"]),
        ("1024718", ["cortex-a55 r0p0", "cortex-a55 r2p0", "kryo-4xx-silver r13p14"], ["kryo-4xx-silver r13p13"]),
        ("1530923", ["cortex-a55 r0p0", "cortex-a55 r2p0"], ["cortex-a55 r2p1"]),
        ("1165522", ["cortex-a76 r2p0"], ["cortex-a76 r2p1", "neoverse-n1 r1p0"]),
        ("1286807", ["cortex-a76 r3p0", "kryo-4xx-gold r15p14"], ["cortex-a76 r3p1", "kryo-4xx-gold r15p15"]),
        ("1188873", ["neoverse-n1 r2p0", "cortex-a76 r2p0"], ["neoverse-n1 r3p0", "cortex-a76 r3p0"]),
        ("1418040", ["neoverse-n1 r3p1", "kryo-4xx-gold r12p14"], ["neoverse-n1 r3p2", "kryo-4xx-gold r12p13"]),
        ("1463225", ["cortex-a76 r3p1"], ["cortex-a76 r4p0", "neoverse-n1 r3p1"]),
        ("1508412", ["cortex-a77 r0p0", "cortex-a77 r1p0"], ["cortex-a77 r1p1"]),
        # Linux asks CTR_EL0.DIC; the revisions are those of Trusted Firmware-A.
        ("1542419", ["neoverse-n1 r3p0", "neoverse-n1 r4p0"], ["neoverse-n1 r2p0", "neoverse-n1 r4p1"]),
        ("2119858", ["cortex-a710 r2p1", "cortex-x2 r2p0"], ["cortex-x2 r2p1"]),
        ("2658417", ["cortex-a510 r1p1"], ["cortex-a510 r1p2"]),
        ("2966298", ["cortex-a520 r0p1"], ["cortex-a520 r0p2"]),
        ("4193714", ["c1-pro r1p2"], ["c1-pro r1p3"]),
        ("4193789", ["neoverse-n2 r0p3", "azure-cobalt-100 r0p0"], ["neoverse-n1 r0p0"]),
        ("27456", ["thunderx r1p1", "thunderx-81xx r0p0"], ["thunderx r1p2", "thunderx-81xx r0p1"]),
        ("30115", ["thunderx r1p2", "thunderx-81xx r0p2"], ["thunderx r1p3", "thunderx-83xx r0p1"]),
        ("38545", ["octeontx2-95xxmm r0p0"], ["thunderx2 r0p0"]),
        ("219", ["thunderx2 r1p1", "vulcan r0p1"], ["thunderx r0p0"]),
        # arch/arm64/include/asm/assembler.h: two revisions, and none between them.
        ("E#010001", ["a64fx r0p0", "a64fx r1p0"], ["a64fx r0p1", "a64fx r1p1", "a64fx r2p0"]),
        ("CNP", ["carmel r0p0"], ["denver r0p0"]),
        ("162100125", ["hip09 r0p0"], ["tsv110 r1p0"]),
        ("E1003", ["falkor-v1 r0p0", "kryo r1p2"], ["falkor-v1 r10p4", "falkor r0p0"]),
        ("AC03_CPU_38", ["ampereone r0p0"], ["ampereonea r0p0"]),
        # arch/arm64/kernel/proton-pack.c.
        ("Spectre-v2", ["cortex-a72 r0p3"], ["cortex-a53 r0p4", "neoverse-n1 r3p1", "tsv110 r1p0"]),
        ("Spectre-v3a", ["cortex-a57 r1p3", "cortex-a72 r0p3"], ["cortex-a73 r0p0"]),
        ("Spectre-v4", ["cortex-a72 r0p3", "tsv110 r1p0"], ["cortex-a53 r0p4", "brahma-b53 r0p0"]),
        ("Spectre-BHB", ["cortex-a72 r0p3", "tsv110 r1p0"], ["cortex-a53 r0p4", "cortex-a510 r0p0"]),
        ("Spectre-BHB-k24", ["neoverse-n1 r3p1", "neoverse-v2 r0p1"], ["cortex-a72 r0p3", "ampereone r0p0"]),
    ],
)
def test_who_has_it(number: str, affected: list[str], spared: list[str]) -> None:
    found = erratum(number)
    assert [text for text in affected if not found.affects(midr(text))] == []
    assert [text for text in spared if found.affects(midr(text))] == []
    assert all(found in errata_of(midr(text)) for text in affected)
    assert not any(found in errata_of(midr(text)) for text in spared)


@pytest.mark.parametrize(
    ("scope", "of_it"),
    [
        (Scope.GUEST, {"832075", "1742098", "858921", "1508412", "1542419", "3324349", "4193800", "219", "E#010001"}),
        (Scope.HOST, {"834220", "852523", "1319367", "1165522", "1463225", "2077057", "30115", "AC04_CPU_23"}),
    ],
)
def test_who_must_work_around_it(scope: Scope, of_it: set[str]) -> None:
    assert {number: erratum(number).scope for number in of_it} == dict.fromkeys(of_it, scope)


def test_all_that_a_cortex_a57_has() -> None:
    # By hand, from the files that errata.toml names; the guest's first, each vendor's by number.
    in_order = ["832075", "1742098", "Spectre-BHB", "Spectre-v2", "Spectre-v4", "834220", "852523", "1319537"]
    assert [found.number for found in errata_of(A57_R1P2)] == [*in_order, "Spectre-v3a"]
    fixed = numbers(errata_of(A57_R1P2)) - numbers(errata_of(A57_R1P3))
    assert fixed == {"832075", "834220"}


def test_all_that_a_neoverse_n1_has() -> None:
    both = {"3324349", "4193800", "1349291", "Spectre-v4", "Spectre-BHB", "Spectre-BHB-k11", "Spectre-BHB-k24"}
    assert numbers(errata_of(N1_R4P1)) == both
    assert numbers(errata_of(N1_R4P0)) == both | {"1542419", "1490853"}
    assert numbers(errata_of(N1_R3P1)) == both | {"1542419", "1490853", "1418040"}
    assert numbers(errata_of(N1_R2P0)) == both | {"1490853", "1418040", "1188873"}


@pytest.mark.parametrize("unknown", [0, 0x7F0FABC2, 0x410FFFF0, 0x420FD070, 0xFFFFFFFF])
def test_an_unknown_processor_has_none(unknown: int) -> None:
    assert errata_of(unknown) == ()
    assert new_errata(A57_R1P0, unknown) == ()
    assert new_errata(unknown, A57_R1P0) == errata_of(A57_R1P0)


# --- what is new


@pytest.mark.parametrize(
    ("source", "destination", "new", "unguarded"),
    [
        (A57_R1P0, A57_R1P3, set(), set()),
        (A57_R1P3, A57_R1P0, {"832075", "834220"}, {"832075"}),
        # The same defects under other numbers.
        (A57_R1P3, A72_R0P3, {"853709", "1319367", "1655431"}, set()),
        (A72_R0P3, A57_R1P3, {"852523", "1319537", "1742098"}, set()),
        (N1_R3P1, N1_R4P1, set(), set()),
        (N1_R4P1, N1_R3P1, {"1418040", "1542419", "1490853"}, {"1418040", "1542419"}),
        # Only the loop becomes too short.
        (N1_R3P1, V1_R1P1, {"3324341", "4193790", "Spectre-BHB-k32"}, {"Spectre-BHB-k32"}),
        (
            V1_R1P1,
            N1_R3P1,
            {"1418040", "1542419", "3324349", "4193800", "1349291", "1490853"},
            {"1418040", "1542419"},
        ),
        (A53_R0P4, A72_R0P3, numbers(errata_of(A72_R0P3)), {"1655431", "Spectre-v2", "Spectre-v4", "Spectre-BHB"}),
    ],
)
def test_what_is_new(source: int, destination: int, new: set[str], unguarded: set[str]) -> None:
    assert numbers(new_errata(source, destination)) == new
    assert numbers(unguarded_errata(source, destination)) == unguarded


def test_what_linux_does_on_every_processor_is_not_unguarded() -> None:
    falkor = midr("falkor r0p0")
    assert "E1041" in numbers(new_errata(A57_R1P3, falkor))
    assert "E1041" not in numbers(unguarded_errata(A57_R1P3, falkor))


@given(any_midr, any_midr)
def test_new_is_what_one_has_and_the_other_has_not(source: int, destination: int) -> None:
    new = new_errata(source, destination)
    assert all(found.affects(destination) and not found.affects(source) for found in new)
    assert set(new) == set(errata_of(destination)) - set(errata_of(source))
    assert [found for found in errata_of(destination) if found in new] == list(new)
    unguarded = unguarded_errata(source, destination)
    assert set(unguarded) <= {found for found in new if found.scope is Scope.GUEST}
    assert {found.workaround for found in unguarded}.isdisjoint(found.workaround for found in errata_of(source))
    assert new_errata(source, source) == unguarded_errata(source, source) == ()


@given(any_midr)
def test_the_architecture_field_makes_no_difference(midr: int) -> None:
    assert errata_of(midr) == errata_of(midr ^ 0xF0000)
