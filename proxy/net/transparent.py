"""Connections that were meant for someone else: nftables brought them here, and they say where they were going.

REDIRECT and DNAT change the destination in the packets; the connection tracking remembers the original one, and
SO_ORIGINAL_DST asks it. TPROXY changes nothing: the accepted socket's own address is the original destination, which
the listening socket has to allow (IP_TRANSPARENT). Both need no setting here; the rules alone decide.

Source: Linux `include/uapi/linux/netfilter_ipv4.h` (SO_ORIGINAL_DST: `struct sockaddr_in`),
`netfilter_ipv6/ip6_tables.h` (IP6T_SO_ORIGINAL_DST: `struct sockaddr_in6`), `in.h` (IP_TRANSPARENT), `in6.h`
(IPV6_TRANSPARENT), `Documentation/networking/tproxy.rst`.
"""

import errno
import ipaddress
import socket
import struct
import weakref
from typing import TYPE_CHECKING, Final

from proxy.errors import ConfigError, RefusedError
from proxy.net.address import TcpAddress
from proxy.net.connection import SocketConnection
from proxy.net.redirection import DEFAULT_MARK
from proxy.net.tls.connection import TlsConnection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.net.binding import Bound
    from proxy.net.connection import Connection
    from proxy.net.redirection import PortRange

_ORIGINAL_DST: Final = 80
_SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")
"""`struct sockaddr_in`: family (in the host's order, not looked at), port and address in network order."""
_SOCKADDR_IN6: Final = struct.Struct("!2xH4x16s4x")
"""`struct sockaddr_in6`: family, port, flow, address, scope."""
_TRANSPARENT: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, 19),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 75),
}
_UNTRACKED: Final = frozenset({errno.ENOENT, errno.ENOPROTOOPT, errno.EOPNOTSUPP})
"""No connection tracking knows of the connection, or there is none in this kernel."""

_MAPPED: Final = "::ffff:"


class Redirection:
    """Where redirected connections were going, and which of them may go on there.

    Attributes:
        ports: Destination ports that are dialled; a rule that catches too much does not make an open relay.
        mark: The firewall mark by which the rules tell the proxy's own connections.
    """

    def __init__(self, ports: "PortRange", mark: int = DEFAULT_MARK) -> None:
        self.ports = ports
        self.mark = mark
        self._listening: set[TcpAddress] = set()
        self._dialled: weakref.WeakSet[SocketConnection | TlsConnection] = weakref.WeakSet()

    def __str__(self) -> str:
        return f"the original destinations of redirected connections, ports {self.ports}"

    def prepare(self, bounds: "Iterable[Bound]") -> None:
        """Make sockets take what TPROXY brings, and see that the mark can be set: now, not at the first migration.

        Raises:
            ConfigError: CAP_NET_ADMIN is missing, a socket does not listen for TCP, or its port is one of the
                redirected, and it listens on that at every address.
        """
        for one in bounds:
            if one.socket is None or not one.listens or one.socket.family not in _TRANSPARENT:
                raise ConfigError(f"cannot listen on {one.name}: --transparent takes TCP connections only")
            host, port = one.socket.getsockname()[:2]
            if port in self.ports and ipaddress.ip_address(host).is_unspecified:
                raise ConfigError(
                    f"cannot listen on {one.name}: ports {self.ports} are those of the destinations; listen on "
                    "another one, or at one address only, where no destination does"
                )
            self._listening.add(TcpAddress(host, port))
            try:
                one.socket.setsockopt(*_TRANSPARENT[socket.AddressFamily(one.socket.family)], 1)
            except OSError as error:
                raise ConfigError(_forbidden("IP_TRANSPARENT", error)) from error
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as scratch:
            try:
                scratch.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.mark)
            except OSError as error:
                raise ConfigError(_forbidden("SO_MARK", error)) from error

    def destination_of(self, source: "Connection") -> TcpAddress:
        """Return where a connection was going before it was redirected.

        Raises:
            RefusedError: It was not redirected, or goes to a port that is none of `ports`.
        """
        if not isinstance(source, SocketConnection) or source.socket.family not in _TRANSPARENT:
            raise RefusedError("it is no TCP connection, and cannot have been redirected")
        own = _own_address(source)
        address = _tracked(source) or own
        if address.port in self.ports and address not in self._listening:
            return address
        if address == own:
            raise RefusedError(
                "it was not redirected, but made to the proxy itself; let the source migrate to the destination, and "
                "load the rules ('vmstate-proxy transparent rules')"
            )
        raise RefusedError(f"it was going to {address}, and only ports {self.ports} are dialled (--ports)")

    def add_dialled(self, connection: "Connection") -> None:
        """Remember a connection that this proxy made, for as long as it is open."""
        if isinstance(connection, SocketConnection | TlsConnection):
            self._dialled.add(connection)

    def check_not_own(self, source: "Connection") -> None:
        """See that a connection is not one that this proxy made; what it made is known once the first bytes came.

        Raises:
            RefusedError: It is: the rules redirect the proxy to itself.
        """
        if not isinstance(source, SocketConnection):
            return
        peer, destination = _peer_address(source), self.destination_of(source)
        for dialled in self._dialled:
            # What is closed has no address any more; its old one may be another's by now.
            if peer is not None and _peer_address(dialled) == destination and _own_address(dialled) == peer:
                raise RefusedError(
                    "it is the proxy's own, which the rules redirected to it again; they have to leave mark "
                    f"{self.mark:#x} alone, as those of 'vmstate-proxy transparent rules' do"
                )


def _tracked(source: SocketConnection) -> TcpAddress | None:
    """Return the original destination that the connection tracking knows; None if it does not know the connection."""
    mapped = str(source.socket.getsockname()[0]).startswith(_MAPPED)
    try:
        if source.socket.family == socket.AF_INET or mapped:
            found = source.socket.getsockopt(socket.IPPROTO_IP, _ORIGINAL_DST, _SOCKADDR_IN.size)
            port, host = _SOCKADDR_IN.unpack(found)
        else:
            found = source.socket.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL_DST, _SOCKADDR_IN6.size)
            port, host = _SOCKADDR_IN6.unpack(found)
    except OSError as error:
        if error.errno in _UNTRACKED:
            return None
        raise RefusedError(f"its original destination cannot be found: {error.strerror or error}") from error
    return TcpAddress(str(ipaddress.ip_address(host)), port)


def _own_address(connection: SocketConnection | TlsConnection) -> TcpAddress:
    return _address(connection.socket.getsockname())


def _peer_address(connection: SocketConnection | TlsConnection) -> TcpAddress | None:
    """Return the peer's address; None when the connection is gone."""
    try:
        return _address(connection.socket.getpeername())
    except OSError:
        return None


def _address(name: "tuple[str, int]") -> TcpAddress:
    """Return a socket's name as an address; IPv4 on an IPv6 socket is IPv4."""
    return TcpAddress(str(name[0]).removeprefix(_MAPPED), int(name[1]))


def _forbidden(option: str, error: OSError) -> str:
    return (
        f"--transparent: {option} cannot be set: {error.strerror or error}; run as root, or with the capability "
        "CAP_NET_ADMIN (AmbientCapabilities=CAP_NET_ADMIN in a systemd unit)"
    )
