"""How a destination's QEMU has to be started for a guest: the features of its vCPUs that are to be turned off."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from formats.arm.vcpu_features import Kind
from proxy.hosts.started_qemu import CPU_PROPERTIES

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile


class Start(msgspec.Struct, frozen=True):
    """How the destination's QEMU has to be started.

    Attributes:
        off: The properties of `-cpu host` that have to be off.
    """

    off: tuple[str, ...]

    @property
    def qemu(self) -> str:
        """QEMU's option: `-cpu host,pmu=off`."""
        return qemu_cpu(self.off)

    @property
    def libvirt(self) -> str:
        """What libvirt's domain needs for the same; see `libvirt_xml`."""
        return libvirt_xml(self.off)

    def as_dict(self) -> dict[str, Any]:
        """Return it as it goes into JSON."""
        return {"qemu": self.qemu, "libvirt": self.libvirt}


def start_for(host: "HostProfile", kinds: Collection[Kind]) -> Start | None:
    """Return how a destination has to be started for a guest.

    Args:
        host: The destination.
        kinds: The kinds of the guest's vCPUs.

    Returns:
        How; None where the profile does not know what the host could give, or the vCPUs are not alike.
    """
    if not host.all_kinds or len(kinds) != 1:
        return None
    (kind,) = kinds
    return Start(tuple(turned_off(host.kinds[0], kind)))


def turned_off(offered: Kind, wanted: Kind) -> list[str]:
    """Return the properties of `-cpu host` that have to be off: what the host would give, and the guest has not."""
    return sorted(name for name, features in CPU_PROPERTIES.items() if features & (offered - wanted))


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
