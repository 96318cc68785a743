"""Dialling the destination, whatever its address names."""

import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from proxy.errors import PeerError
from proxy.net.address import Address, FdAddress, StdioAddress, SystemdAddress, TcpAddress, UnixAddress, VsockAddress
from proxy.net.aside import aside
from proxy.net.connection import Connection, SocketConnection, StdioConnection
from proxy.net.resolving import resolve

if TYPE_CHECKING:
    from proxy.net.tls.roles import ClientTls

_TIMEOUT: Final = 30.0

_UNPACED: Final = b"reno"
"""A congestion control that sets no timers to send by, and that everyone may have. Source: Linux
Documentation/networking/ip-sysctl.rst, tcp_allowed_congestion_control."""


async def dial(address: Address, *, mark: int | None = None, tls: "ClientTls | None" = None) -> Connection:
    """Connect to the first of the name's addresses that answers.

    Args:
        address: Where to.
        mark: The firewall mark that the connection's packets get (SO_MARK); None for none.
        tls: What is spoken there; None for plain text.

    Raises:
        PeerError: None did, or the one that did cannot be trusted.
    """
    connection = await _dialled(address, mark)
    if tls is None:
        return connection
    return await tls.greet(connection, address.host if isinstance(address, TcpAddress) else "")


async def _dialled(address: Address, mark: int | None) -> Connection:
    problem: object = "it has no address"
    try:
        match address:
            case StdioAddress():
                return StdioConnection("destination")
            case FdAddress():
                return _inherited(address)
            case SystemdAddress():
                raise PeerError("destination", "cannot be systemd:, which listens")
        with trio.fail_after(_TIMEOUT):
            for family, name in await _names(address):
                try:
                    sock = await _connected(family, name, mark)
                except OSError as error:
                    # trio's own words repeat the address.
                    problem = os.strerror(error.errno) if error.errno else error
                else:
                    return SocketConnection("destination", sock, name=str(address))
    except OSError as error:
        problem = error.strerror or error
    except trio.TooSlowError:
        problem = f"no answer within {_TIMEOUT:g} seconds"
    raise PeerError("destination", f"at {address} cannot be reached: {problem}")


async def _connected(family: int, name: tuple[str | int, int] | str, mark: int | None) -> trio.socket.SocketType:
    """Connect to one address; an OSError says why not."""
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        if mark is not None:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_MARK, mark)
        if _stays_here(family, name):
            # BBR, where it is the system's, costs a third of the throughput, and nothing can be congested.
            sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_CONGESTION, _UNPACED)
        await sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock


async def _names(address: TcpAddress | UnixAddress | VsockAddress) -> list[tuple[int, tuple[str | int, int] | str]]:
    match address:
        case UnixAddress():
            return [(trio.socket.AF_UNIX, address.sockaddr)]
        case VsockAddress():
            return [(trio.socket.AF_VSOCK, (address.cid, address.port))]
        case _:
            found = await aside("looking up the destination's name", partial(resolve, address, passive=False))
            return [(family, (host, port)) for family, host, port in found]


def _stays_here(family: int, name: tuple[str | int, int] | str) -> bool:
    """Whether a TCP address is one of this machine: the kernel answers from there, too."""
    if family not in (trio.socket.AF_INET, trio.socket.AF_INET6):
        return False
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(name)  # sends nothing
        return bool(probe.getsockname()[0] == name[0])


def _inherited(address: FdAddress) -> Connection:
    sock = trio.socket.from_stdlib_socket(socket.socket(fileno=os.dup(address.number)))
    return SocketConnection("destination", sock, name=str(address))
