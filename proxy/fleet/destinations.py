"""The destinations of a fleet: one profile a file, found by the address or the name that is dialled."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.errors import ConfigError, RefusedError
from proxy.hosts.profile_file import load_profile
from proxy.judging.judge import Judge

if TYPE_CHECKING:
    from proxy.hosts.profile import HostProfile
    from proxy.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class Destinations:
    """Knows which judge goes with which destination.

    Attributes:
        folder: Where the profiles are, for people.
        by_name: The judges by address or name, as they are compared.
        by_network: Those of whole networks, the smallest networks first.
        default: For all that are not known; None to refuse these.
    """

    folder: str
    by_name: dict[str, Judge]
    by_network: tuple[tuple[IPv4Network | IPv6Network, Judge], ...] = ()
    default: Judge | None = None

    def judge_of(self, host: str) -> Judge:
        """Return the judge of the guests that go to a host.

        Args:
            host: The address, as a number, or the name that is dialled.

        Raises:
            RefusedError: No profile is that host's.
        """
        judge = self.by_name.get(_comparable(host))
        if judge is None and (address := _address(host)) is not None:
            judge = next((one for network, one in self.by_network if address in network), None)
        judge = judge or self.default
        if judge is None:
            raise RefusedError(
                f"no profile in {self.folder} is that of the destination {host}: call it {host}.toml there, or list it "
                "under addresses in its profile; or give --default-host"
            )
        return judge

    def prepare(self) -> None:
        """Load what verdicts need; see `Judge.prepare`."""
        for judge in {id(one): one for one in self._all()}.values():
            judge.prepare()

    def _all(self) -> "list[Judge]":
        default = () if self.default is None else (self.default,)
        return [*self.by_name.values(), *(judge for _, judge in self.by_network), *default]


def load_destinations(folder: Path, policy: "Policy", default: "HostProfile | None") -> Destinations:
    """Load every profile in a folder.

    A profile is that of the hosts under its key `addresses`: addresses, networks and names. Without that key it is that
    of the host that its file is called by, as `10.0.0.7.toml` or `rack7.toml`.

    Args:
        folder: Holds them, as *.toml.
        policy: What the operator vouches for.
        default: The profile of hosts that none is for.

    Raises:
        ConfigError: One cannot be read, or two are for the same host, or there is none.
    """
    by_name: dict[str, Judge] = {}
    by_network: dict[IPv4Network | IPv6Network, Judge] = {}
    owners: dict[str, Path] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from error
    if not paths:
        raise ConfigError(f"{folder}: there is no profile (*.toml)")
    for path in paths:
        profile = load_profile(path)
        judge = Judge(policy, profile)
        for text in profile.addresses or (path.stem,):
            network = _network(text)
            key = str(network) if network is not None else _comparable(text)
            if key in owners:
                raise ConfigError(f"{path}: {text} is in {owners[key]}, too")
            owners[key] = path
            if network is None:
                by_name[key] = judge
            else:
                by_network[network] = judge
    smallest_first = sorted(by_network.items(), key=lambda one: one[0].prefixlen, reverse=True)
    return Destinations(
        str(folder), by_name, tuple(smallest_first), None if default is None else Judge(policy, default)
    )


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _network(text: str) -> IPv4Network | IPv6Network | None:
    """Return the network that a text stands for; None where it is one address, or a name."""
    try:
        return ip_network(text) if "/" in text else None
    except ValueError as error:
        raise ConfigError(f"addresses: {text!r}: {error}") from error


def _comparable(text: str) -> str:
    """Return an address in its one form, or a name in lower case."""
    address = _address(text)
    return text.rstrip(".").lower() if address is None else str(address)
