"""Opening what sources connect to, with plain sockets: from then on the kernel takes their connections.

Nothing here needs trio. The program listens before it has loaded what carries migrations, which takes longer.
"""

import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from proxy.errors import ProxyError
from proxy.net.address import (
    Address,
    FdAddress,
    StdioAddress,
    SystemdAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    format_address,
)
from proxy.net.resolving import resolve

_BACKLOG: Final = 1024
"""Connections that may wait to be accepted; whoever finds no room waits for a second. net.core.somaxconn bounds it."""
_FIRST_PASSED: Final = 3
"""The number of the first socket that systemd passes (SD_LISTEN_FDS_START)."""


@dataclass(slots=True)
class Bound:
    """Where sources connect, or a source that is connected already.

    Attributes:
        name: Its address, in QEMU's syntax.
        socket: It listens, or is connected; None for standard input and output.
        listens: Whether it listens; otherwise it is the only source that comes.
    """

    name: str
    socket: socket.socket | None
    listens: bool
    _path: str | None = None

    def close(self) -> None:
        """Close it; a socket's file goes, too. Once is enough, and more does no harm."""
        if self.socket is not None:
            self.socket.close()
        path, self._path = self._path, None
        if path is not None:
            with suppress(OSError):
                os.unlink(path)


@contextmanager
def bound(addresses: Iterable[Address]) -> "Iterator[list[Bound]]":
    """Bind addresses for the length of a `with`.

    Raises:
        ProxyError: One cannot be; none is then.
    """
    everything: list[Bound] = []
    try:
        for address in addresses:
            everything += bind(address)
        yield everything
    finally:
        for one in everything:
            one.close()


def bind(address: Address) -> list[Bound]:
    """Bind every address that the name stands for; an empty host is the loopback, never every interface.

    Raises:
        ProxyError: The name is unknown, or an address cannot be bound.
    """
    match address:
        case StdioAddress():
            return [Bound(str(address), None, listens=False)]
        case FdAddress():
            return [_inherited(address.number, str(address))]
        case SystemdAddress():
            return _passed_on(os.environ)
    try:
        match address:
            case UnixAddress():
                return [_bind_unix(address)]
            case VsockAddress():
                return [_bind(socket.AF_VSOCK, (address.cid, address.port))]
            case TcpAddress():
                return _bind_each(resolve(address, passive=True))
    except OSError as error:
        # A resolver's numbers are negative, and are no errnos.
        problem = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        raise ProxyError(f"cannot listen on {address}: {problem}") from error


def _bind_each(found: Iterable[tuple[int, str, int]]) -> list[Bound]:
    everything: list[Bound] = []
    try:
        for family, host, port in found:
            everything.append(_bind(family, (host, port)))
    except BaseException:
        for one in everything:
            one.close()
        raise
    return everything


def _bind(family: int, name: tuple[str | int, int] | str, path: str | None = None) -> Bound:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(name)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return Bound(_own_name(sock), sock, listens=True, _path=path)


def _bind_unix(address: UnixAddress) -> Bound:
    if address.abstract:
        return _bind(socket.AF_UNIX, address.sockaddr)
    _remove_stale(address)
    return _bind(socket.AF_UNIX, address.path, address.path)


def _remove_stale(address: UnixAddress) -> None:
    """Remove a socket's file that nobody listens on any more, as a killed proxy leaves it."""
    try:
        if not stat.S_ISSOCK(os.lstat(address.path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)
        except BlockingIOError:
            """Someone listens, and has many in waiting."""


def _inherited(number: int, shown: str) -> Bound:
    """Take a socket that was inherited; one that is connected is the only source."""
    try:
        sock = socket.socket(fileno=os.dup(number))
        listens = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        raise ProxyError(f"cannot listen on {shown}: {error.strerror or error}") from error
    if sock.type != socket.SOCK_STREAM:
        raise ProxyError(f"cannot listen on {shown}: it is no stream socket")
    return Bound(_own_name(sock) if listens else shown, sock, listens)


def _passed_on(environment: Mapping[str, str]) -> list[Bound]:
    """Take the sockets that systemd passed; source: sd_listen_fds(3)."""
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal() or not int(count):
        raise ProxyError(
            "cannot listen on systemd:, no sockets were passed (LISTEN_PID, LISTEN_FDS); a .socket unit starts the "
            "service with them"
        )
    return [_inherited(number, f"fd:{number}") for number in range(_FIRST_PASSED, _FIRST_PASSED + int(count))]


def _own_name(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)
        return f"unix:{text.replace(chr(0), '@')}"
    if sock.family == socket.AF_VSOCK:
        return str(VsockAddress(int(name[0]), int(name[1])))
    return format_address(str(name[0]), int(name[1]))
