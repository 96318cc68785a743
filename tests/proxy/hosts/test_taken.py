"""What KVM was seen to take: asked of one that answers by rules, written and read."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.arm.sysreg import MIDR_EL1, parse_register
from proxy.hosts.taken import TakenField, measure, parse_taken, parts_of, refused_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.hosts.kvm import ScratchVcpu

PFR0 = parse_register("ID_AA64PFR0_EL1")
MMFR2 = parse_register("ID_AA64MMFR2_EL1")
DFR0_32 = parse_register("ID_DFR0_EL1")
PSCI = parse_register("KVM_REG_ARM_PSCI_VERSION")
BITMAP = parse_register("KVM_REG_ARM_STD_HYP_BMAP")
CSV3 = 60
NV = 24


class Kvm:
    """A vCPU that takes values by a rule, and remembers its value."""

    def __init__(self, own: int, takes: Callable[[int], bool]) -> None:
        self.value = own
        self._own = own
        self._takes = takes

    def set(self, _register: int, value: int) -> int:
        if value != self._own and not self._takes(value):
            return 22
        self.value = value
        return 0

    def taken(self, register: int, values: Iterable[int]) -> list[int]:
        return [value for value in values if self.set(register, value) == 0]


def measured(register: int, own: int, takes: Callable[[int], bool], mask: int | None = None) -> list[str]:
    kvm = Kvm(own, takes)
    found = measure(cast("ScratchVcpu", kvm), register, own, mask)
    assert kvm.value == own
    return [str(field) for field in found]


def test_a_lower_value_and_the_hardwares_own_are_found() -> None:
    assert measured(PFR0, 2 << CSV3, lambda value: value >> CSV3 < 2 and not value & ~(0xF << CSV3)) == ["CSV3 0-1"]
    assert measured(MMFR2, 0, lambda value: value == 2 << NV) == ["NV 2"]
    assert measured(PFR0, 2 << CSV3, lambda _: False) == []


def test_what_hosts_cannot_do_is_not_asked_of_aarch32() -> None:
    assert measured(DFR0_32, 0x3010006, lambda _: True, mask=0) == []
    assert measured(DFR0_32, 0x3010006, lambda value: value in (0x0010006, 0x2010006)) == ["PerfMon 0,2"]


def test_firmware_is_asked_as_a_whole_and_bitmaps_bit_by_bit() -> None:
    assert measured(PSCI, 0x10001, lambda value: value in (2, 0x10000)) == ["value 2,65536"]
    assert measured(BITMAP, 3, lambda value: not value & ~3) == ["bit 0 0", "bit 1 0"]


@given(st.sampled_from([PFR0, MMFR2, DFR0_32, PSCI, BITMAP, MIDR_EL1]), st.data())
def test_a_field_comes_back_as_it_was(register: int, data: st.DataObject) -> None:
    part = data.draw(st.sampled_from(parts_of(register)))
    values = data.draw(st.none() | st.frozensets(st.integers(0, (1 << part.width) - 1), min_size=1))
    field = TakenField(part.name, part.low, part.width, values)
    assert parse_taken(register, str(field)) == field


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("CSV9 1", "has no field 'CSV9'"),
        ("CSV3", "has no field ''"),
        ("CSV3 ", "'' is neither"),
        ("CSV3 x", "'x' is neither"),
        ("CSV3 0-16", "does not fit"),
        ("CSV3 2-1", "does not fit"),
        ("CSV3 1-", "'1-' is neither"),
    ],
)
def test_what_is_no_field_is_told(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_taken(PFR0, text)


def test_every_field_has_to_be_taken() -> None:
    taken = {PFR0: (parse_taken(PFR0, "CSV3 0"), parse_taken(PFR0, "CSV2 0-1"))}
    own = 1 << CSV3 | 2 << 56
    assert refused_parts(PFR0, own, own, taken) == []
    assert refused_parts(PFR0, 1 << 56, own, taken) == []
    assert [field.name for field in refused_parts(PFR0, 3 << 56, own, taken)] == ["CSV2"]
    assert [field.name for field in refused_parts(PFR0, own | 1, own, taken)] == ["EL0"]
    assert [field.name for field in refused_parts(PFR0, 0, own, {})] == ["CSV2", "CSV3"]
    versions = {PSCI: (parse_taken(PSCI, "value 2,65536"),)}
    assert refused_parts(PSCI, 2, 0x10001, versions) == []
    assert [field.name for field in refused_parts(PSCI, 0x10003, 0x10001, versions)] == ["value"]
