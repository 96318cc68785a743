"""The QEMU on this host that listens where a migration goes to: what its command line turns off in its vCPUs.

Source: proc(5), `/proc/net/tcp` and `/proc/PID/cmdline`; QEMU `docs/system/arm/cpu-features.rst`.
"""

import os
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from formats.arm.vcpu_features import Kind, VcpuFeature
from proxy.hosts.qemu import version_of

_LISTENS: Final = "0A"
CPU_PROPERTIES: Final = {
    "pmu": frozenset({VcpuFeature.PMU_V3}),
    "sve": frozenset({VcpuFeature.SVE}),
    "pauth": frozenset({VcpuFeature.PTRAUTH_ADDRESS, VcpuFeature.PTRAUTH_GENERIC}),
}
"""QEMU's properties of `-cpu host`, and the features that each turns off."""
_PROPERTIES_SINCE: Final = {"pauth": (7, 2)}
"""QEMU 5.2 has no `pauth` for `-cpu host`, and exits; 7.2 has it. It has `pmu` and `sve`."""
_MODELS: Final = ("host", "max")
"""With KVM the two are the same."""


class StartedQemu(msgspec.Struct, frozen=True):
    """A QEMU that waits for a migration.

    Attributes:
        where: What was looked at: its process, or its QMP socket.
        cpu: Its option `-cpu`.
        off: The features that it turns off.
    """

    where: str
    cpu: str
    off: Kind

    def __str__(self) -> str:
        return f"{self.where}, -cpu {self.cpu}"


def has_property(qemu: str | None, name: str) -> bool:
    """Tell whether a QEMU knows a property of `-cpu host`, whether its host has the feature or not.

    Args:
        qemu: Its version, such as `10.0.13`; None when it is not known, which is taken for a new one.
        name: One of CPU_PROPERTIES.
    """
    version = version_of(qemu)
    return version is None or version >= _PROPERTIES_SINCE.get(name, version)


def look_at(host: str, port: int) -> StartedQemu | None:
    """Look at the QEMU that listens at a TCP address of this host.

    Args:
        host: The address, as a number.
        port: The port.

    Returns:
        What it is; None where the address is another host's, or it cannot be told who listens, or with what.
    """
    found = words_of(host, port)
    return None if found is None else parse_command(*found)


def words_of(host: str, port: int) -> tuple[int, list[str]] | None:
    """Return process id and command line of the QEMU that listens at a TCP address of this host; None as `look_at`."""
    if not is_own(host):
        return None
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    pid = next(_holders(sockets), None) if sockets else None
    if pid is None:
        return None
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return (pid, words) if "qemu" in os.path.basename(words[0]) else None


def parse_command(pid: int, words: list[str]) -> StartedQemu | None:
    """Read a QEMU's command line; None when it does not say what its vCPUs are."""
    cpu = next((value for word, value in pairwise(words) if word in ("-cpu", "--cpu")), None)
    if cpu is None:
        return None
    model, *properties = cpu.split(",")
    if model not in _MODELS:
        return None
    off: frozenset[VcpuFeature] = frozenset()
    for text in properties:
        name, _, value = text.partition("=")
        if value == "off":
            off |= CPU_PROPERTIES.get(name, frozenset())
        else:
            off -= CPU_PROPERTIES.get(name, frozenset())
    return StartedQemu(f"process {pid}", cpu, off)


def is_own(host: str) -> bool:
    """Tell whether an address, as a number, is one of this host."""
    import socket  # only a destination on this host is looked at

    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError):
        return False
    return True


def _listening(port: int) -> Iterator[str]:
    """Yield the inodes of the sockets that listen at a port."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _holders(sockets: set[str]) -> Iterator[int]:
    """Yield the processes that hold one of some sockets, as far as they let themselves be looked at."""
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            if any(os.readlink(one) in sockets for one in (process / "fd").iterdir()):
                yield int(process.name)
        except OSError:
            continue
