"""The nftables rules that bring migrations to a transparent proxy.

Source: nft(8): REDIRECT STATEMENT (a nat prerouting chain gives a redirected packet the address of the interface that
it came in by, an output chain gives it the loopback's), TPROXY STATEMENT, FIB EXPRESSIONS; Linux
`Documentation/networking/tproxy.rst`.
"""

import enum
import ipaddress
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proxy.errors import ConfigError
from proxy.net.address import LOOPBACK, TcpAddress
from proxy.net.redirection import DEFAULT_MARK, MIGRATION_PORTS, PortRange

if TYPE_CHECKING:
    from collections.abc import Iterator

    IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
    IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

TABLE: Final = "inet vmstate_proxy"
_ROUTING_TABLE: Final = 4444
_REDIRECTED_TO: Final = ("127.0.0.1", "::1")
"""The addresses that an output chain's redirect gives."""

_SYN: Final = "tcp flags & (fin | syn | rst | ack) == syn"


class Side(enum.StrEnum):
    """The host on which the proxy runs, and which migrations it then sees."""

    DESTINATION = "destination"
    """Those that come to this host."""
    SOURCE = "source"
    """Those that leave this host."""
    GATEWAY = "gateway"
    """Those that this host forwards."""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """What the rules are made from.

    Attributes:
        side: The host on which the proxy runs.
        listening: Where it listens: a number, no name, and no port 0.
        ports: The destinations' ports.
        mark: The firewall mark of the proxy's own connections.
        peers: Networks, one of which the migration's other end has to be in; empty for anywhere.
        tproxy: Whether connections are handed over as they are, and not by translating addresses.
        local: Whether, on the source host, what it sends to itself is meant, too.
    """

    side: Side
    listening: tuple[TcpAddress, ...]
    ports: PortRange = MIGRATION_PORTS
    mark: int = DEFAULT_MARK
    peers: "tuple[IpNetwork, ...]" = ()
    tproxy: bool = False
    local: bool = False

    def check(self) -> None:
        """See that what is redirected will arrive.

        Raises:
            ConfigError: It would not.
        """
        if self.local and self.side is not Side.SOURCE:
            raise ConfigError("--local: what a host sends to itself passes by on its way out only, with --source")
        if self.tproxy and self.side is Side.SOURCE:
            raise ConfigError("--tproxy: the kernel has it for what comes in, not for what this host sends")
        for address in self.listening:
            host = _number(address)
            if not address.port:
                raise ConfigError(f"--listen {address}: give the port that the proxy listens on")
            if address.port in self.ports and host.is_unspecified:
                raise ConfigError(
                    f"--listen {address}: ports {self.ports} are those of the destinations; take another, or listen at "
                    "one address only, where no destination does"
                )
            if self.tproxy or host.is_unspecified:
                continue
            if self.side is Side.SOURCE and not host.is_loopback:
                raise ConfigError(
                    f"--listen {address}: what this host sends is redirected to the loopback: listen there"
                )
            if self.side is not Side.SOURCE and host.is_loopback:
                raise ConfigError(
                    f"--listen {address}: what comes in is not redirected to the loopback: listen on 0.0.0.0, [::] or "
                    "this host's address, or use --tproxy"
                )

    def lines(self) -> "Iterator[str]":
        """Yield the lines of a file for `nft -f`.

        Raises:
            ConfigError: What is redirected would not arrive.
        """
        self.check()
        yield from self._heading()
        yield f"add table {TABLE}"
        yield f"delete table {TABLE}"
        yield f"table {TABLE} {{"
        yield f"\tchain {self.side} {{"
        yield f"\t\t{self._hook()}"
        yield ""
        yield "\t\t# What the proxy itself dials is left alone."
        yield f"\t\tmeta mark {self.mark:#x} return"
        if self._routed:
            yield ""
            yield "\t\t# What has been taken over goes on to the proxy."
            # A listener on all addresses would match whatever is forwarded to its port, but for the ports given here.
            yield f"\t\ttcp dport {self.ports} socket transparent 1 meta mark set {self._routing_mark:#x} accept"
        yield ""
        for address in self.listening:
            for peers in self._peers(_number(address).version):
                yield f"\t\t{' '.join(self._rule(address, peers))}"
        yield "\t}"
        yield "}"

    @property
    def _routed(self) -> bool:
        """Whether packets for other hosts have to be brought here by a routing rule."""
        return self.tproxy and self.side is Side.GATEWAY

    @property
    def _routing_mark(self) -> int:
        return self.mark ^ 1

    def _heading(self) -> "Iterator[str]":
        run = ["vmstate-proxy", "run", "--transparent"]
        run += [word for address in self.listening for word in ("--listen", str(address))]
        run += [] if self.ports == MIGRATION_PORTS else ["--ports", str(self.ports)]
        run += [] if self.mark == DEFAULT_MARK else ["--mark", f"{self.mark:#x}"]
        what = {
            Side.DESTINATION: "that come to this host",
            Side.SOURCE: "that leave this host",
            Side.GATEWAY: "that this host forwards",
        }
        yield f"# Migrations {what[self.side]}, to ports {self.ports}, go to vmstate-proxy:"
        yield f"#     {shlex.join(run)} ..."
        yield "# Start it before the rules are loaded; remove them when its last migration has ended."
        yield "# Load, and load again:  nft -f FILE   (or - for standard input)"
        yield f"# Remove:                nft delete table {TABLE}"
        if self._routed:
            yield "# These are needed, too, where IPv6 is used also with `ip -6`:"
            yield f"#     ip rule add fwmark {self._routing_mark:#x} lookup {_ROUTING_TABLE}"
            yield f"#     ip route add local default dev lo table {_ROUTING_TABLE}"
        yield ""

    def _hook(self) -> str:
        match self.side:
            case Side.SOURCE:
                return "type nat hook output priority -100; policy accept;"
            case _ if self.tproxy:
                return "type filter hook prerouting priority mangle; policy accept;"
        return "type nat hook prerouting priority dstnat; policy accept;"

    def _peers(self, version: int) -> "list[list[IpNetwork] | None]":
        """Return the networks of a family as one set, no set where none is asked for, and nothing where none fits."""
        if not self.peers:
            return [None]
        # A set takes no two that overlap.
        networks: list[IpNetwork] = []
        if version == 4:
            networks += ipaddress.collapse_addresses(n for n in self.peers if isinstance(n, ipaddress.IPv4Network))
        else:
            networks += ipaddress.collapse_addresses(n for n in self.peers if isinstance(n, ipaddress.IPv6Network))
        return [networks] if networks else []

    def _rule(self, address: TcpAddress, peers: "list[IpNetwork] | None") -> "Iterator[str]":
        host = _number(address)
        family = "ip" if host.version == 4 else "ip6"
        yield f"meta nfproto ipv{host.version}"
        # Only a host's own ports are meant: connections of its virtual machines come by here, too.
        if not self.local:
            yield "fib daddr type local" if self.side is Side.DESTINATION else "fib daddr type != local"
        if peers is not None:
            yield f"{family} {'daddr' if self.side is Side.SOURCE else 'saddr'}"
            yield f"{{ {', '.join(map(str, peers))} }}"
        yield f"tcp dport {self.ports}"
        number = str(host) if host.version == 4 else f"[{host}]"
        if self.tproxy:
            yield _SYN
            yield f"tproxy {family} to {'' if host.is_unspecified else number}:{address.port}"
            yield f"meta mark set {self._routing_mark:#x} accept" if self._routed else "accept"
        elif host.is_unspecified or str(host) in _REDIRECTED_TO:
            yield f"redirect to :{address.port}"
        else:
            yield f"dnat {family} to {number}:{address.port}"


def parse_network(text: str) -> "IpNetwork":
    """Parse a network, or an address, which is one, too.

    Raises:
        ConfigError: It is none.
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(f"network {text!r}: write an address or a network, as 10.0.0.0/24 or fd00::/64") from error


def _number(address: TcpAddress) -> "IpAddress":
    try:
        return ipaddress.ip_address(address.host or LOOPBACK)
    except ValueError as error:
        raise ConfigError(f"--listen {address}: the rules need a number, as 0.0.0.0 or [::]") from error
