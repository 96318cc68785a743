"""Names to TCP addresses."""

import errno

import trio

from proxy.address import LOOPBACK, TcpAddress


async def resolve(address: TcpAddress, *, passive: bool) -> list[tuple[int, str, int]]:
    """Return family, host and port of each address that a name stands for.

    Raises:
        OSError: It stands for none.
    """
    try:
        found = await trio.socket.getaddrinfo(
            address.host or LOOPBACK,
            address.port,
            address.family,
            trio.socket.SOCK_STREAM,
            flags=trio.socket.AI_PASSIVE if passive else 0,
        )
    except UnicodeError as error:
        raise OSError(errno.EINVAL, "no host can have that name") from error
    return [(int(family), str(name[0]), int(name[1])) for family, _, _, _, name in found]
