"""TCP sockets as migrations need them: dialled, bound, tuned, pumped, and reset. OSErrors become PeerErrors here."""

import errno
import os
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from formats.errors import FormatError
from proxy.address import LOOPBACK, TcpAddress, format_address
from proxy.errors import ConfigError, PeerError, ProxyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_DIAL_TIMEOUT: Final = 30.0
_RESET: Final = struct.pack("ii", 1, 0)
_OPENING: Final = 64 << 10
_BREATH: Final = 0.2


async def bind(address: TcpAddress) -> list[trio.SocketListener]:
    """Listen on every address that the name stands for; an empty host is the loopback, never every interface.

    Raises:
        ConfigError: The name is unknown, or an address cannot be bound.
    """
    try:
        found = await _resolve(address, passive=True)
        listeners = []
        for family, host, port in found:
            sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
            try:
                sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
                if family == trio.socket.AF_INET6:
                    sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 1)
                await sock.bind((host, port))
                sock.listen(128)
            except OSError:
                sock.close()
                raise
            listeners.append(trio.SocketListener(sock))
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from error
    return listeners


async def first_to_speak(
    listeners: list[trio.SocketListener], say: "Callable[[str], None]"
) -> tuple[trio.socket.SocketType, bytes]:
    """Wait for a connection that brings bytes, not only its end as a port scan does.

    Returns:
        The connection, and its first bytes. The listeners, and all other connections, are closed.
    """
    chosen: list[tuple[trio.socket.SocketType, bytes]] = []
    async with trio.open_nursery() as nursery:

        async def accept(listener: trio.SocketListener) -> None:
            async with listener:
                while True:
                    try:
                        stream = await listener.accept()
                    except OSError as error:
                        say(f"cannot accept a connection just now: {error.strerror or error}")
                        await trio.sleep(_BREATH)
                    else:
                        nursery.start_soon(greet, stream.socket)

        async def greet(sock: trio.socket.SocketType) -> None:
            opening, peer = b"", peer_name(sock)
            try:
                with suppress(OSError):
                    opening = await sock.recv(_OPENING)
                if not opening:
                    say(f"{peer} connected and left without a word")
                elif not chosen:
                    chosen.append((sock, opening))
                    nursery.cancel_scope.cancel()
            finally:
                if not any(sock is taken for taken, _ in chosen):
                    reset(sock)

        for listener in listeners:
            nursery.start_soon(accept, listener)
    return chosen[0]


async def dial(address: TcpAddress) -> trio.socket.SocketType:
    """Connect to the first of the name's addresses that answers.

    Raises:
        PeerError: None did.
    """
    problem: object = "it has no address"
    try:
        with trio.fail_after(_DIAL_TIMEOUT):
            for family, host, port in await _resolve(address, passive=False):
                sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
                try:
                    await sock.connect((host, port))
                except OSError as error:
                    sock.close()
                    # trio's own words repeat the address.
                    problem = os.strerror(error.errno) if error.errno else error
                except BaseException:
                    sock.close()
                    raise
                else:
                    return sock
    except OSError as error:
        problem = error.strerror or error
    except trio.TooSlowError:
        problem = f"no answer within {_DIAL_TIMEOUT:g} seconds"
    raise PeerError("destination", f"at {address} cannot be reached: {problem}")


async def _resolve(address: TcpAddress, *, passive: bool) -> list[tuple[int, str, int]]:
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


def tune(sock: trio.socket.SocketType) -> None:
    """Set what a migration leg wants: released state leaves at once, and sending waits for no low-water mark."""
    sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE, 1)


def reset(sock: trio.socket.SocketType) -> None:
    """Close with a TCP reset, so that the peer sees an error and never a clean end."""
    if sock.fileno() >= 0:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, _RESET)
        sock.close()


def finish_sending(sock: trio.socket.SocketType) -> None:
    """Carry a half-close over: nothing more will be sent."""
    try:
        sock.shutdown(trio.socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


async def send(sock: trio.socket.SocketType, data: bytes | bytearray | memoryview) -> None:
    """Send all of `data`."""
    with memoryview(data) as view:
        sent = 0
        while sent < len(view):
            sent += await sock.send(view[sent:])


async def receive(sock: trio.socket.SocketType, buffer: memoryview, peer: str) -> memoryview:
    """Receive into a buffer; return what came, nothing at the end.

    Raises:
        PeerError: The connection broke.
    """
    async with translated(peer):
        return buffer[: await sock.recv_into(buffer)]


async def together(*pumps: "Awaitable[None]") -> None:
    """Run pumps until all have ended.

    Raises:
        ProxyError, FormatError: The first one's that failed, alone; the others were cancelled.
    """
    problem: list[ProxyError | FormatError] = []
    async with trio.open_nursery() as nursery:

        async def guarded(pump: "Awaitable[None]") -> None:
            try:
                await pump
            except (ProxyError, FormatError) as error:
                problem.append(error)
                nursery.cancel_scope.cancel()

        for pump in pumps:
            nursery.start_soon(guarded, pump)
    if problem:
        raise problem[0]


def peer_name(sock: trio.socket.SocketType) -> str:
    """Return the peer's address in QEMU's syntax."""
    try:
        name = sock.getpeername()
    except OSError:
        return "tcp:?"
    return format_address(str(name[0]), int(name[1]))


@asynccontextmanager
async def translated(peer: str) -> "AsyncIterator[None]":
    """Turn the OSErrors of a peer's socket into PeerErrors that name it."""
    try:
        yield
    except OSError as error:
        raise PeerError(peer, f"broke the connection: {error.strerror or error}") from error
