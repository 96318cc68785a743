"""What a destination takes, as its profile tells it."""

from __future__ import annotations

from itertools import product

import pytest

from formats.arm.sysreg import MIDR_EL1, describe, parse_register
from proxy.hosts.profile import HostProfile
from proxy.judging.profile_acceptance import NO_SUCH_REGISTER, refused_by
from tests.proxy.helpers import NAMES, NEWER, NEWER_DROPPED, NEWER_SWAPPED, OLDER, PSCI_VERSION, R0, R3, midr_only
from tests.proxy.helpers import profile as recorded

CTR_EL0, CLIDR_EL1 = parse_register("CTR_EL0"), parse_register("CLIDR_EL1")
DFR0, PFR0 = parse_register("ID_AA64DFR0_EL1"), parse_register("ID_AA64PFR0_EL1")
SCTLR_EL1, ACTLR_EL1 = parse_register("SCTLR_EL1"), parse_register("ACTLR_EL1")
WORKAROUNDS = [parse_register(f"KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_{number}") for number in (1, 2, 3)]
STD_BMAP = parse_register("KVM_REG_ARM_STD_BMAP")
CCSIDRS = [parse_register(f"CCSIDR_EL1[{index}]") for index in range(14)]

IDC = 1 << 28


def host(
    values: dict[int, int], *, writable: dict[int, int] | None = None, others: frozenset[int] = frozenset({SCTLR_EL1})
) -> HostProfile:
    return HostProfile("made up", {MIDR_EL1: R3, **values}, others, writable=writable)


def why(host_: HostProfile, register: int, value: int | None) -> str | None:
    """Return why a register is refused; what is asked of others at the same time does not matter."""
    found = refused_by(host_, [(register, value)])
    assert found.keys() <= {register}
    assert refused_by(host_, [*host_.values.items(), (register, value)]) == found
    return found.get(register)


# --- recorded hosts


@pytest.mark.parametrize("name", NAMES)
def test_a_host_takes_what_it_gave(name: str) -> None:
    assert refused_by(recorded(name), recorded(name).values.items()) == {}


def test_another_revision_is_refused_for_its_revision_alone() -> None:
    found = refused_by(recorded("kvm-trixie-a57r3"), recorded("kvm-trixie-a57r0").values.items())
    assert found == {MIDR_EL1: "Revision 0 -> 3"}


def test_an_older_kernel_of_the_same_processor() -> None:
    newer = recorded(NEWER)
    assert newer.others is not None
    everything = [*newer.values.items(), *((register, None) for register in newer.others)]
    found = refused_by(recorded(OLDER), everything)
    assert {describe(register).name for register, said in found.items() if said == NO_SUCH_REGISTER} == set(
        NEWER_DROPPED
    )
    fixed = {describe(register).name: said for register, said in found.items() if said != NO_SUCH_REGISTER}
    assert fixed.keys() == set(NEWER_SWAPPED)
    assert fixed["ID_AA64DFR0_EL1"] == "DebugVer 8 -> 6"
    assert fixed["CCSIDR_EL1[0]"] == "fixed, 0x701fe01a on the destination"


def test_a_newer_kernel_of_the_same_processor_lets_the_caches_be_described() -> None:
    """It needs no masks for them; of ID_AA64DFR0_EL1 nobody says that it may be written."""
    found = refused_by(recorded(NEWER), recorded(OLDER).values.items())
    assert found == {DFR0: "DebugVer 6 -> 8"}


# --- which registers there are


def test_a_register_that_is_not_listed_is_lacking_whatever_its_value() -> None:
    for value in (0, 1, None):
        assert why(host({}), ACTLR_EL1, value) == NO_SUCH_REGISTER
        assert why(host({}), CTR_EL0, value) == NO_SUCH_REGISTER
        assert why(host({}), 0x603000000013FFFF, value) == NO_SUCH_REGISTER


def test_a_partial_profile_lacks_nothing_and_refuses_what_it_knows() -> None:
    partial = midr_only()
    assert refused_by(partial, [(MIDR_EL1, R3), (ACTLR_EL1, 1), (CTR_EL0, 5), (STD_BMAP, 7), (CCSIDRS[3], 2)]) == {}
    assert refused_by(partial, [(MIDR_EL1, R0), (ACTLR_EL1, 1)]) == {MIDR_EL1: "Revision 0 -> 3"}


@pytest.mark.parametrize("register", [MIDR_EL1, CTR_EL0, DFR0, *WORKAROUNDS, STD_BMAP, *CCSIDRS[:2], CLIDR_EL1])
def test_a_value_that_is_not_known_is_taken_to_be_fine(register: int) -> None:
    assert why(host({register: 0}), register, None) is None


@pytest.mark.parametrize("value", [0, 1, (1 << 64) - 1])
def test_guest_state_is_never_refused(value: int) -> None:
    """Not even where somebody put its value into the profile."""
    assert why(host({}), SCTLR_EL1, value) is None
    assert why(host({SCTLR_EL1: 0x30D00800}), SCTLR_EL1, value) is None
    timer = parse_register("CNTV_CTL_EL0")
    assert why(host({timer: 4}), timer, value) is None


# --- ID registers


@pytest.mark.parametrize("writable", [None, {}, {DFR0: 0}, {PFR0: (1 << 64) - 1}], ids=str)
@pytest.mark.parametrize("value", [0x10305405, 0x10305406, 0x10305407, 0x10305306])
def test_without_masks_a_register_is_fixed(writable: dict[int, int] | None, value: int) -> None:
    found = why(host({DFR0: 0x10305406}, writable=writable), DFR0, value)
    assert (found is None) == (value == 0x10305406)


@pytest.mark.parametrize(
    ("value", "mask", "says"),
    [
        (0x10305406, 0xFFF, None),
        (0x10305106, 0xF00, None),
        (0x10305106, 0xFF, "PMUVer 1 -> 4"),
        (0x10305106, 0x700, "PMUVer 1 -> 4"),
        (0x10305506, 0xF00, "PMUVer 5 -> 4"),
        (0x10305505, 0xFFF, "PMUVer 5 -> 4"),
        (0x10305507, 0xFFF, "DebugVer 7 -> 6, PMUVer 5 -> 4"),
        (0x10305416, 0xFFFF, "TraceVer 1 -> 0"),
        (0x1000010305406, (1 << 64) - 1, "MTPMU 1 -> 0"),
    ],
)
def test_masks_and_the_order_of_the_field_decide(value: int, mask: int, says: str | None) -> None:
    assert why(host({DFR0: 0x10305406}, writable={DFR0: mask}), DFR0, value) == says


def test_a_signed_field_is_below_zero_where_there_is_nothing() -> None:
    there, nothing = host({PFR0: 0}, writable={PFR0: 0xF0000}), host({PFR0: 0xF0000}, writable={PFR0: 0xF0000})
    assert why(there, PFR0, 0xF0000) is None
    assert why(nothing, PFR0, 0) == "FP 0 -> -1"


def test_bits_without_a_name_are_told_by_their_place() -> None:
    assert why(host({CTR_EL0: 0}), CTR_EL0, 1 << 30) == "bit 30 1 -> 0"
    assert why(host({CTR_EL0: 0}), CTR_EL0, 1 << 63) == f"bits 63:38 {1 << 25} -> 0"


@pytest.mark.parametrize("name", ["MIDR_EL1", "REVIDR_EL1", "AIDR_EL1"])
def test_what_names_the_processor_is_fixed(name: str) -> None:
    register = parse_register(name)
    assert why(host({register: R3}), register, R0) is not None
    assert why(host({register: R3}), register, R3) is None


# --- caches


def caches(*, idc: bool = False, smallest: int = 4, smallest_of_instructions: int = 4, listed: int = 14) -> HostProfile:
    ctr = smallest << 16 | smallest_of_instructions | (IDC if idc else 0)
    return host({CTR_EL0: ctr, CLIDR_EL1: 0x82000023, **dict.fromkeys(CCSIDRS[:listed], 0x701FE01A)})


@pytest.mark.parametrize("listed", [1, 3, 13])
def test_a_kernel_that_does_not_list_all_caches_fixes_them(listed: int) -> None:
    destination = caches(listed=listed)
    assert why(destination, CCSIDRS[0], 0x201FE01A) == "fixed, 0x701fe01a on the destination"
    assert why(destination, CCSIDRS[0], 0x701FE01A) is None
    assert why(destination, CLIDR_EL1, 0x9200003) == "the destination does not take it in place of 0x82000023"
    assert why(destination, CCSIDRS[13], 0x2) == NO_SUCH_REGISTER


@pytest.mark.parametrize("index", range(14))
@pytest.mark.parametrize("smallest", range(2, 8))
def test_lines_are_no_shorter_than_the_smallest(index: int, smallest: int) -> None:
    """CTR_EL0 counts words, a CCSIDR from 16 bytes: 2 here is 0 there. Odd indexes are caches of instructions."""
    of_instructions = index % 2 == 1
    destination = caches(
        smallest=0 if of_instructions else smallest, smallest_of_instructions=smallest if of_instructions else 0
    )
    for line in range(8):
        taken = why(destination, CCSIDRS[index], 0x201FE018 | line) is None
        assert taken == (line >= smallest - 2)


@pytest.mark.parametrize(
    ("value", "without_idc", "with_idc"),
    [
        (0x9200003, True, True),  # LoUU 1, LoC 1, LoUIS 1
        (0x1200003, True, True),  # LoC 1, LoUIS 1
        (0x9000003, True, True),  # LoUU 1, LoC 1
        (0x1000003, False, True),  # LoC 1 alone
        (0x8200003, False, True),  # no LoC
        (0x3, False, True),
        (0x0, False, True),
        (0x9200003 | 1 << 46, True, True),
        (0x9200003 | 1 << 47, False, False),
        (0x9200003 | 1 << 63, False, False),
    ],
)
def test_a_cache_hierarchy_asks_for_as_much_cleaning_as_the_host_needs(
    value: int, without_idc: bool, with_idc: bool
) -> None:
    assert (why(caches(), CLIDR_EL1, value) is None) == without_idc
    assert (why(caches(idc=True), CLIDR_EL1, value) is None) == with_idc


# --- firmware

LEVELS = ("NOT_AVAIL", "AVAIL", "NOT_REQUIRED")


@pytest.mark.parametrize("register", [WORKAROUNDS[0], WORKAROUNDS[2]])
@pytest.mark.parametrize(("here", "there"), list(product(range(3), repeat=2)))
def test_a_mitigation_is_not_lowered(register: int, here: int, there: int) -> None:
    found = why(host({register: there}), register, here)
    if here <= there:
        assert found is None
    else:
        assert found == (
            f"the guest would lose a mitigation: {LEVELS[here]} on the source, {LEVELS[there]} on the destination"
        )


@pytest.mark.parametrize("enabled", [0, 0x10])
@pytest.mark.parametrize(("here", "there"), list(product(range(4), repeat=2)))
def test_the_mitigation_of_ssbd_has_two_states_for_kvm(here: int, there: int, enabled: int) -> None:
    """There is none to be had, or there is nothing to do; AVAIL, which old kernels gave, asks for the latter."""
    found = why(host({WORKAROUNDS[1]: there}), WORKAROUNDS[1], here | enabled)
    names = ("NOT_AVAIL", "UNKNOWN", "AVAIL", "NOT_REQUIRED")
    if here >= 2 and there < 2:
        assert found is not None
        assert found.endswith(f"{names[here]} on the source, {names[there]} on the destination")
    else:
        assert found is None


@pytest.mark.parametrize("register", WORKAROUNDS)
def test_a_level_that_is_not_known_is_not_waved_through(register: int) -> None:
    """`kvm_arm_set_fw_reg` knows no such level."""
    highest = 3 if register == WORKAROUNDS[1] else 2
    found = why(host({register: highest}), register, 9)
    assert found is not None
    assert "9 on the source" in found


@pytest.mark.parametrize(
    ("here", "there", "taken"),
    [(0x10001, 0x10001, True), (0x10000, 0x10001, True), (0x2, 0x10001, True), (0x10003, 0x10001, False)],
)
def test_a_psci_version_is_not_lowered(here: int, there: int, taken: bool) -> None:
    found = why(host({PSCI_VERSION: there}), PSCI_VERSION, here)
    assert found == (None if taken else f"{here:#x} on the source, {there:#x} on the destination")


@pytest.mark.parametrize(
    ("here", "there", "missing"),
    [(0, 0, 0), (0, 3, 0), (1, 3, 0), (3, 3, 0), (3, 1, 2), (4, 3, 4), (7, 0, 7), (1 << 63, 1, 1 << 63)],
)
@pytest.mark.parametrize("index", range(5))
def test_hypercalls_are_not_taken_away(index: int, here: int, there: int, missing: int) -> None:
    """Whatever the bitmap, one that nobody knows, too."""
    register = STD_BMAP + index
    found = why(host({register: there}), register, here)
    expected = f"the destination does not offer the hypercalls of bits {missing:#x}" if missing else None
    assert found == expected
