"""Addresses in QEMU's URI syntax.

    tcp:HOST:PORT[,ipv4=on|off][,ipv6=on|off]
    unix:PATH           an abstract name, as systemd writes it, is unix:@NAME
    vsock:CID:PORT      a CID of `any` listens on all
    fd:N                a socket that was inherited: it listens, or it is connected
    stdio:              standard input and output, as QEMU's exec: gives them
    systemd:            the sockets that systemd listens on for a service (LISTEN_FDS)

Source: QEMU `util/qemu-sockets.c` (`inet_parse`, `socket_parse`), the option -incoming in its manual; sd_listen_fds(3).
"""

import re
import socket
from dataclasses import dataclass
from typing import Final

from proxy.errors import ConfigError

LOOPBACK = "127.0.0.1"
_TCP: Final = re.compile(r"tcp:(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:,\[\]]*)):(?P<port>[0-9]{1,5})(?P<options>(?:,.*)?)")
_VSOCK: Final = re.compile(r"vsock:(?P<cid>any|[0-9]{1,10}):(?P<port>[0-9]{1,10})")
_FD: Final = re.compile(r"fd:(?P<number>[0-9]{1,9})")

_ANY_CID: Final = 0xFFFFFFFF
_LONGEST_PATH: Final = 107
"""Bytes of a socket's path, `struct sockaddr_un`; Linux wants one more for the end, or for what makes it abstract."""


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


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system, or with an abstract name, which begins with `@`."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def abstract(self) -> bool:
        """Whether it is a name without a file."""
        return self.path.startswith("@")

    @property
    def sockaddr(self) -> str:
        """The address as the kernel wants it."""
        return "\0" + self.path[1:] if self.abstract else self.path


@dataclass(frozen=True, slots=True)
class VsockAddress:
    """A port of a virtual machine, or of its host, each of which has a context id."""

    cid: int
    port: int

    def __str__(self) -> str:
        return f"vsock:{'any' if self.cid == _ANY_CID else self.cid}:{self.port}"


@dataclass(frozen=True, slots=True)
class FdAddress:
    """A socket that was inherited, by the number of its descriptor."""

    number: int

    def __str__(self) -> str:
        return f"fd:{self.number}"


@dataclass(frozen=True, slots=True)
class StdioAddress:
    """Standard input and output."""

    def __str__(self) -> str:
        return "stdio:"


@dataclass(frozen=True, slots=True)
class SystemdAddress:
    """The sockets that systemd listens on for a service."""

    def __str__(self) -> str:
        return "systemd:"


Address = TcpAddress | UnixAddress | VsockAddress | FdAddress | StdioAddress | SystemdAddress


def format_address(host: str, port: int) -> str:
    """Write a TCP address in QEMU's syntax."""
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


def parse_address(text: str) -> Address:
    """Parse an address.

    Raises:
        ConfigError: It is none that is supported; the message says what is.
    """
    kind, colon, rest = text.partition(":")
    match kind if colon else "":
        case "tcp":
            return _tcp(text)
        case "unix":
            return _unix(text, rest)
        case "vsock":
            return _vsock(text)
        case "fd":
            return _fd(text)
        case "stdio" if not rest:
            return StdioAddress()
        case "systemd" if not rest:
            return SystemdAddress()
        case "exec":
            raise ConfigError(
                f"address {text!r}: let QEMU run the proxy instead, as exec:vmstate-proxy run --listen stdio: ..."
            )
        case "rdma":
            raise ConfigError(f"address {text!r}: RDMA goes past every proxy; migrate over tcp: instead")
    raise ConfigError(
        f"address {text!r}: write tcp:HOST:PORT, with IPv6 addresses in brackets: tcp:[::1]:4444; unix:PATH, "
        "vsock:CID:PORT, fd:N, stdio: and systemd: can be given, too"
    )


def _tcp(text: str) -> TcpAddress:
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


def _unix(text: str, path: str) -> UnixAddress:
    if not path.strip("@") or "\0" in path:
        raise ConfigError(f"address {text!r}: write unix:PATH, or unix:@NAME for an abstract name")
    if len(path.encode()) > _LONGEST_PATH:
        raise ConfigError(f"address {text!r}: the path of a socket has at most {_LONGEST_PATH} bytes")
    return UnixAddress(path)


def _vsock(text: str) -> VsockAddress:
    match = _VSOCK.fullmatch(text)
    if match is None:
        raise ConfigError(f"address {text!r}: write vsock:CID:PORT; the CID of a virtual machine's host is 2")
    cid = _ANY_CID if match["cid"] == "any" else int(match["cid"])
    port = int(match["port"])
    if cid > _ANY_CID or port > _ANY_CID:
        raise ConfigError(f"address {text!r}: CID and port have 32 bits each")
    return VsockAddress(cid, port)


def _fd(text: str) -> FdAddress:
    match = _FD.fullmatch(text)
    if match is None:
        raise ConfigError(f"address {text!r}: write fd:N, with the number of an inherited socket")
    return FdAddress(int(match["number"]))
