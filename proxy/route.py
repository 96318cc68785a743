"""The route: where a source's connection goes on to, and how."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.address import TcpAddress
from proxy.dialling import dial

if TYPE_CHECKING:
    from proxy.address import Address
    from proxy.connection import Connection
    from proxy.tls import ClientTls


@dataclass(frozen=True, slots=True)
class Route:
    """How the destination is reached.

    Attributes:
        destination: Where it listens.
        tls: What is spoken there; None for plain text.
    """

    destination: "Address"
    tls: "ClientTls | None" = None

    def __str__(self) -> str:
        return f"the destination at {self.destination}"

    def destination_of(self, _source: "Connection") -> "Address":
        """Return where a source's connection goes on to."""
        return self.destination

    async def dial(self, address: "Address") -> "Connection":
        """Connect to the destination.

        Raises:
            PeerError: It cannot be reached, or not be trusted.
        """
        connection = await dial(address)
        if self.tls is None:
            return connection
        return await self.tls.greet(connection, address.host if isinstance(address, TcpAddress) else "")
