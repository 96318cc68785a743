"""The route: where a source's connection goes on to, and how."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.net.address import TcpAddress
from proxy.net.dialling import dial
from proxy.net.transparent import Redirection

if TYPE_CHECKING:
    from proxy.net.address import Address
    from proxy.net.connection import Connection
    from proxy.net.tls.roles import ClientTls


@dataclass(frozen=True, slots=True)
class Route:
    """How the destination is reached.

    Attributes:
        destination: Where it listens; or how to learn that from each connection, where these are redirected.
        tls: What is spoken there; None for plain text.
        tls_follows: Whether it is spoken there for those sources only that speak TLS themselves.
    """

    destination: "Address | Redirection"
    tls: "ClientTls | None" = None
    tls_follows: bool = False

    @property
    def _redirection(self) -> Redirection | None:
        return self.destination if isinstance(self.destination, Redirection) else None

    @property
    def redirects(self) -> bool:
        """Whether connections come that were meant for the destination, whatever they are."""
        return self._redirection is not None

    def destination_of(self, source: "Connection") -> "Address":
        """Return where a source's connection goes on to.

        Raises:
            RefusedError: It may go nowhere.
        """
        if isinstance(self.destination, Redirection):
            return self.destination.destination_of(source)
        return self.destination

    def check_not_own(self, source: "Connection") -> None:
        """See that a connection that has begun to speak is not one that this route made itself.

        Raises:
            RefusedError: It is.
        """
        if self._redirection:
            self._redirection.check_not_own(source)

    async def dial(self, address: "Address") -> "Connection":
        """Connect to the destination; `secure` is to follow.

        Raises:
            PeerError: It cannot be reached.
        """
        connection = await dial(address, mark=self._redirection.mark if self._redirection else None)
        if self._redirection:
            self._redirection.add_dialled(connection)
        return connection

    async def secure(self, connection: "Connection", address: "Address", *, source_speaks_tls: bool) -> "Connection":
        """Return a connection that was dialled, with TLS on it where that is to be spoken.

        Raises:
            PeerError: The destination cannot be trusted; the connection is closed.
        """
        if self.tls is None or (self.tls_follows and not source_speaks_tls):
            return connection
        host = address.host if isinstance(address, TcpAddress) else ""
        if self._redirection is None:
            return await self.tls.greet(connection, host)
        return await self.tls.greet(connection, host, self._redirection.add_dialled)
