"""What the rules and the proxy have to agree on: a range of TCP ports, and a mark."""

import re
from dataclasses import dataclass
from typing import Final

from proxy.errors import ConfigError

_RANGE: Final = re.compile(r"(?P<first>[0-9]{1,5})(?:-(?P<last>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class PortRange:
    """The ports from `first` to `last`, both included."""

    first: int
    last: int

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


MIGRATION_PORTS: Final = PortRange(49152, 49215)
"""Where libvirt has its QEMUs listen; source: libvirt `src/qemu/qemu.conf.in` (migration_port_min, _max)."""

DEFAULT_MARK: Final = 0x766D7072
"""The firewall mark of the proxy's own connections: `vmpr` in ASCII."""


def parse_ports(text: str) -> PortRange:
    """Parse `FIRST-LAST`, or one port.

    Raises:
        ConfigError: It is no range of ports.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ConfigError(f"ports {text!r}: write FIRST-LAST: {MIGRATION_PORTS}")
    first, last = int(match["first"]), int(match["last"] or match["first"])
    if not 1 <= first <= last <= 0xFFFF:
        raise ConfigError(f"ports {text!r}: they go from 1 to 65535, the smaller one first")
    return PortRange(first, last)
