"""Addresses in QEMU's URI syntax: `tcp:HOST:PORT[,ipv4=on|off][,ipv6=on|off]`.

Source: QEMU `util/qemu-sockets.c` (`inet_parse`), and the option -incoming in its manual.
"""

import re
import socket
from dataclasses import dataclass

from proxy.errors import ConfigError

LOOPBACK = "127.0.0.1"
_TCP = re.compile(r"tcp:(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:,\[\]]*)):(?P<port>[0-9]{1,5})(?P<options>(?:,.*)?)")


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP address as the operator wrote it.

    Attributes:
        host: Name or number; empty where none was written.
        port: 0 to 65535.
        family: AF_UNSPEC, or the one that the options leave.
    """

    host: str
    port: int
    family: socket.AddressFamily = socket.AF_UNSPEC

    def __str__(self) -> str:
        return format_address(self.host, self.port)


def format_address(host: str, port: int) -> str:
    """Write a TCP address in QEMU's syntax."""
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


def parse_address(text: str) -> TcpAddress:
    """Parse an address.

    Raises:
        ConfigError: It is none that is supported; the message says what is.
    """
    match = _TCP.fullmatch(text)
    if match is None:
        raise ConfigError(f"address {text!r}: write tcp:HOST:PORT, with IPv6 addresses in brackets: tcp:[::1]:4444")
    port = int(match["port"])
    if port > 0xFFFF:
        raise ConfigError(f"address {text!r}: there is no port {port}")
    return TcpAddress(match["six"] or match["host"], port, _family(text, match["options"], bool(match["six"])))


def _family(text: str, options: str, bracketed: bool) -> socket.AddressFamily:
    said: dict[str, bool] = {}
    for option in options.split(",")[1:]:
        name, _, value = option.partition("=")
        if name not in ("ipv4", "ipv6") or option not in (name, f"{name}=on", f"{name}=off"):
            raise ConfigError(f"address {text!r}: option {option!r} is not supported; ipv4=on|off and ipv6=on|off are")
        said[name] = value != "off"
    # As in QEMU, naming one family as wanted rules out the other, unless that is wanted, too.
    unsaid = not any(said.values())
    four, six = said.get("ipv4", unsaid), said.get("ipv6", unsaid)
    if not (four or six) or (bracketed and not six):
        raise ConfigError(f"address {text!r}: its options leave no address family")
    if four and six:
        return socket.AF_UNSPEC
    return socket.AF_INET if four else socket.AF_INET6
