"""Dialling the destination, whatever its address names."""

import os
import socket
from functools import partial
from typing import Final

import trio

from proxy.address import Address, FdAddress, StdioAddress, SystemdAddress, TcpAddress, UnixAddress, VsockAddress
from proxy.connection import Connection, SocketConnection, StdioConnection
from proxy.errors import PeerError
from proxy.resolving import resolve

_TIMEOUT: Final = 30.0


async def dial(address: Address, *, mark: int | None = None) -> Connection:
    """Connect to the first of the name's addresses that answers.

    Args:
        address: Where to.
        mark: The firewall mark that the connection's packets get (SO_MARK); None for none.

    Raises:
        PeerError: None did.
    """
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
                sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
                try:
                    if mark is not None:
                        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_MARK, mark)
                    await sock.connect(name)
                except OSError as error:
                    sock.close()
                    # trio's own words repeat the address.
                    problem = os.strerror(error.errno) if error.errno else error
                except BaseException:
                    sock.close()
                    raise
                else:
                    return SocketConnection("destination", sock, name=str(address))
    except OSError as error:
        problem = error.strerror or error
    except trio.TooSlowError:
        problem = f"no answer within {_TIMEOUT:g} seconds"
    raise PeerError("destination", f"at {address} cannot be reached: {problem}")


async def _names(address: TcpAddress | UnixAddress | VsockAddress) -> list[tuple[int, tuple[str | int, int] | str]]:
    match address:
        case UnixAddress():
            return [(trio.socket.AF_UNIX, address.sockaddr)]
        case VsockAddress():
            return [(trio.socket.AF_VSOCK, (address.cid, address.port))]
        case _:
            found = await trio.to_thread.run_sync(partial(resolve, address, passive=False), abandon_on_cancel=True)
            return [(family, (host, port)) for family, host, port in found]


def _inherited(address: FdAddress) -> Connection:
    sock = trio.socket.from_stdlib_socket(socket.socket(fileno=os.dup(address.number)))
    return SocketConnection("destination", sock, name=str(address))
