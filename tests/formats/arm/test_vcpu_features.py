"""What a vCPU was created with, told from its registers."""

from __future__ import annotations

import pytest

from formats.arm.sysreg import parse_register
from formats.arm.vcpu_features import MARKS, FeatureEvidence, VcpuFeature, features_of, kind_of, named

EVERYTHING = dict.fromkeys(MARKS.values(), 0)


def test_the_kind_is_what_the_list_of_registers_shows() -> None:
    assert kind_of({}) == frozenset()
    assert kind_of(EVERYTHING) == set(VcpuFeature) - {VcpuFeature.EL1_32BIT}
    for feature, mark in MARKS.items():
        assert kind_of({mark: 0}) == {feature}


def test_evidence_names_the_register_and_the_field() -> None:
    pfr0 = parse_register("ID_AA64PFR0_EL1")
    found = {one.feature: one for one in features_of({pfr0: 1 << 32, MARKS[VcpuFeature.SVE]: 0}, ["cpu/sve"])}
    assert found[VcpuFeature.SVE] == FeatureEvidence(
        VcpuFeature.SVE,
        present=True,
        evidence="ZCR_EL1 is among its registers, ID_AA64PFR0_EL1.SVE is 1, there is a subsection cpu/sve",
    )
    assert found[VcpuFeature.PMU_V3] == FeatureEvidence(
        VcpuFeature.PMU_V3, present=False, evidence="PMCR_EL0 is not among its registers"
    )


@pytest.mark.parametrize(
    ("pstate", "present"),
    [(None, None), (0x3C5, False), (0x1D3, True), (0x10, None), (0x60000010, None), (0x600001D7, True)],
)
def test_a_32_bit_vcpu_shows_in_its_state_alone(pstate: int | None, present: bool | None) -> None:
    (found,) = (one for one in features_of({}, (), pstate) if one.feature is VcpuFeature.EL1_32BIT)
    assert found.present is present
    assert found.evidence


def test_a_kind_has_a_name() -> None:
    assert named([VcpuFeature.SVE, VcpuFeature.PMU_V3]) == "PMU_V3, SVE"
    assert named([]) == "none of the optional features"
