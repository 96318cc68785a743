"""Which hosts may connect: networks that a listener beyond the loopback interface takes connections from."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from proxy.errors import ConfigError, RefusedError


@dataclass(frozen=True, slots=True)
class AllowedSources:
    """The networks that sources may be in.

    Attributes:
        networks: The networks; none for any source.
    """

    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def check(self, host: str) -> None:
        """See that a host may connect; those without an address, on a unix socket or a descriptor, always may.

        Args:
            host: Its address as a number, perhaps an IPv4 address within IPv6 (::ffff:10.0.0.1).

        Raises:
            RefusedError: It is in none of the networks.
        """
        if not self.networks or not host:
            return
        address = ip_address(host.partition("%")[0])
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        if not any((mapped or address) in network for network in self.networks):
            raise RefusedError(f"it is in none of the networks of --allow-source: {', '.join(map(str, self.networks))}")


def parse_networks(texts: Iterable[str]) -> AllowedSources:
    """Read networks: `10.0.0.0/24`, `fd00::/8`, or one address.

    Raises:
        ConfigError: One is none.
    """
    networks = []
    for text in texts:
        try:
            networks.append(ip_network(text.strip()))
        except ValueError as error:
            raise ConfigError(
                f"--allow-source {text!r}: {error}; write it as 10.0.0.0/24, or as one address"
            ) from error
    return AllowedSources(tuple(networks))
