"""TLS: ended at the proxy, and begun anew towards the destination, with x509 credentials of each side's own.

Here are the two roles, and the handshake; see `credentials` for the folders, `connection` for what follows.
Credentials are read for every connection, so that renewed certificates need no restart.
"""

import ssl
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from proxy.errors import ConfigError, PeerError
from proxy.net.connection import Connection, SocketConnection
from proxy.net.tls.connection import TlsConnection
from proxy.net.tls.credentials import explained, load_credentials, own_names

if TYPE_CHECKING:
    from collections.abc import Callable

_HANDSHAKE_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What sources must speak.

    Attributes:
        folder: ca-cert.pem, server-cert.pem, server-key.pem; ca-crl.pem if there is one.
        clients: The common names of the clients that may come; empty for all that the authority has signed.
        anyone: Whether clients may come that show no certificate.
    """

    folder: str
    clients: frozenset[str] = frozenset()
    anyone: bool = False

    def check(self) -> None:
        """Read the credentials once.

        Raises:
            ConfigError: They cannot be read, or do not belong together.
        """
        self._context()

    async def welcome(self, source: Connection) -> TlsConnection:
        """Shake hands with a source that connected; see `_shaken`."""
        connection = await _shaken(source, self._context, server_side=True)
        name = connection.common_name
        if self.clients and name not in self.clients:
            connection.reset()
            listed = ", ".join(sorted(self.clients))
            raise PeerError("source", f"shows the certificate of {name!r}, and --tls-allow-client has {listed}")
        return connection

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL if self.anyone else ssl.CERT_REQUIRED
        # A source without a return path reads nothing. A ticket that lies unread when it closes makes its kernel reset
        # the connection, and what it has sent and is still to be received here is lost, with its guest.
        context.num_tickets = 0
        return load_credentials(context, self.folder, "server")


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What is spoken to the destination.

    Attributes:
        folder: ca-cert.pem; client-cert.pem, client-key.pem and ca-crl.pem if there are such.
        hostname: Whose certificate the destination must show; None for the host that is dialled.
        own: A folder with server-cert.pem, where destinations on this host have the proxy's own: redirected connections
            tell an address, and such a certificate may have been made for the host's name alone.
    """

    folder: str
    hostname: str | None = None
    own: str | None = None

    def check(self) -> None:
        """Read the credentials once; see `ServerTls.check`."""
        self._context()

    async def greet(
        self, destination: Connection, host: str, on_made: "Callable[[Connection], None]" = lambda _: None
    ) -> Connection:
        """Shake hands with a destination that was dialled; see `_shaken`.

        Args:
            destination: The connection to it.
            host: What was dialled.
            on_made: Gets the connection that takes the place of `destination`, before the handshake.
        """
        try:
            name = self.hostname or self._own_name(destination, host) or host
        except ConfigError as error:
            destination.reset()
            raise PeerError("destination", f"cannot be spoken to: {error}") from error
        if not name:
            destination.reset()
            problem = f"at {destination.name} has no host name that could be checked; give it one by --tls-hostname"
            raise PeerError("destination", problem)
        return await _shaken(destination, self._context, on_made, server_hostname=name)

    def _own_name(self, destination: Connection, host: str) -> str | None:
        """Return what a destination on this host is called, where its certificate is not made for its address."""
        if self.own is None or not isinstance(destination, SocketConnection) or not destination.stays_here:
            return None
        names = own_names(self.own)
        return None if host in names else next(iter(names), None)

    def _context(self) -> ssl.SSLContext:
        return load_credentials(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self.folder, "client")


_HANDSHAKE_RECORD: Final = 0x16
"""The first byte of a ClientHello, and of nothing that begins a migration or one of its channels. Source: RFC 8446,
section 5.1 (ContentType)."""


async def speaks_tls(source: Connection) -> bool:
    """Wait for what a source says first, and leave it where it is; tell whether it begins a TLS handshake.

    Raises:
        PeerError: The connection broke.
    """
    return isinstance(source, SocketConnection) and await source.peek(1) == bytes([_HANDSHAKE_RECORD])


_OPTIONS: Final[dict[str, Any]] = {"do_handshake_on_connect": False, "suppress_ragged_eofs": True}
"""QEMU 7.2 ends without a close_notify, and a reset looks the same here, so an end of file proves nothing. What a
stream lacks is found by the parser, and by who waits for SHUT."""


async def _shaken(
    below: Connection,
    make_context: "Callable[[], ssl.SSLContext]",
    on_made: "Callable[[Connection], None]" = lambda _: None,
    **options: Any,  # noqa: ANN401 - of wrap_socket
) -> TlsConnection:
    """Shake hands on a connection.

    Raises:
        PeerError: The peer cannot be trusted, does not trust the proxy, or speaks no TLS; or the credentials, which may
            just be being renewed, cannot be read. The connection is reset.
    """
    if not isinstance(below, SocketConnection):
        below.reset()
        raise PeerError(below.peer, "is reached by no socket, so there is no TLS to it")
    try:
        context = make_context()
    except ConfigError as error:
        below.reset()
        raise PeerError(below.peer, f"cannot be spoken to: {error}") from error
    try:
        connection = TlsConnection(below, partial(context.wrap_socket, **_OPTIONS, **options))
    except (OSError, ValueError, TypeError) as error:
        raise PeerError(below.peer, f"cannot be spoken to: {error}") from error
    on_made(connection)
    try:
        with trio.fail_after(_HANDSHAKE_TIMEOUT):
            await connection.shake_hands()
    except trio.TooSlowError:
        connection.reset()
        raise PeerError(below.peer, f"did not shake hands within {_HANDSHAKE_TIMEOUT:g} seconds") from None
    except PeerError as error:
        # Not a reset: an alert is on its way that tells the peer why.
        connection.close()
        raise PeerError(below.peer, f"failed the TLS handshake: {explained(error.__cause__)}") from error.__cause__
    except BaseException:
        connection.reset()
        raise
    return connection
