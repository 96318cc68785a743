"""Names to TCP addresses."""

import errno
import socket

from proxy.net.address import LOOPBACK, TcpAddress


def resolve(address: TcpAddress, *, passive: bool) -> list[tuple[int, str, int]]:
    """Return family, host and port of each address that a name stands for; it may take the resolver's time.

    Raises:
        OSError: It stands for none.
    """
    try:
        found = socket.getaddrinfo(
            address.host or LOOPBACK,
            address.port,
            address.family,
            socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE if passive else 0,
        )
    except UnicodeError as error:
        raise OSError(errno.EINVAL, "no host can have that name") from error
    return [(int(family), str(name[0]), int(name[1])) for family, _, _, _, name in found]
