"""How a destination has to be started for a guest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from formats.arm.vcpu_features import VcpuFeature
from proxy.judging.start_flags import start_for
from tests.proxy.hosts.test_variants import WHOLE

PMU, SVE = VcpuFeature.PMU_V3, VcpuFeature.SVE


@pytest.mark.parametrize(
    ("kind", "qemu", "libvirt"),
    [
        ({PMU, SVE}, "-cpu host", ""),
        (
            {PMU},
            "-cpu host,sve=off",
            "<cpu mode='host-passthrough'><feature policy='disable' name='sve'/></cpu>",
        ),
        ({SVE}, "-cpu host,pmu=off", "<features><pmu state='off'/></features>"),
        (
            set(),
            "-cpu host,pmu=off,sve=off",
            "<features><pmu state='off'/></features>"
            "<cpu mode='host-passthrough'><feature policy='disable' name='sve'/></cpu>",
        ),
        ({PMU, SVE, VcpuFeature.MTE}, "-cpu host", ""),
    ],
)
def test_what_the_guest_has_not_is_turned_off(kind: set[VcpuFeature], qemu: str, libvirt: str) -> None:
    start = start_for(WHOLE, [frozenset(kind)])
    assert start is not None
    assert start.as_dict() == {"qemu": qemu, "libvirt": libvirt}


def test_what_is_not_known_is_not_said() -> None:
    kind = frozenset({PMU, SVE})
    assert start_for(replace(WHOLE, all_kinds=False), [kind]) is None
    assert start_for(WHOLE, [kind, frozenset({PMU})]) is None
    assert start_for(WHOLE, []) is None
