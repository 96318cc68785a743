"""How a destination's QEMU has to be started for a guest: the features of its vCPUs that are to be turned off."""

from collections.abc import Iterable
from typing import Final

from formats.arm.vcpu_features import Kind, VcpuFeature

_PROPERTIES: Final = {
    VcpuFeature.PMU_V3: "pmu",
    VcpuFeature.SVE: "sve",
    VcpuFeature.PTRAUTH_ADDRESS: "pauth",
    VcpuFeature.PTRAUTH_GENERIC: "pauth",
}
"""QEMU's properties of `-cpu host` (QEMU `docs/system/arm/cpu-features.rst`)."""


def turned_off(offered: Kind, wanted: Kind) -> list[str]:
    """Return the properties of `-cpu host` that have to be off: what the host would give, and the guest has not."""
    return sorted({_PROPERTIES[feature] for feature in offered - wanted if feature in _PROPERTIES})


def qemu_cpu(off: Iterable[str]) -> str:
    """Write QEMU's option: `-cpu host,pmu=off`."""
    return "-cpu " + ",".join(["host", *(f"{name}=off" for name in off)])


def libvirt_xml(off: Iterable[str]) -> str:
    """Write what libvirt's domain needs for the same; nothing when nothing is off.

    Source: libvirt, Domain XML format, "CPU model and topology" and "Hypervisor features".
    """
    names = list(off)
    features = "".join(f"<feature policy='disable' name='{name}'/>" for name in names if name != "pmu")
    pmu = "<features><pmu state='off'/></features>" if "pmu" in names else ""
    return pmu + (f"<cpu mode='host-passthrough'>{features}</cpu>" if features else "")
