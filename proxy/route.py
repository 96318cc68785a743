"""The route: where a source's connection goes on to, and how."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.dialling import dial

if TYPE_CHECKING:
    from proxy.address import Address
    from proxy.connection import Connection


@dataclass(frozen=True, slots=True)
class Route:
    """How the destination is reached.

    Attributes:
        destination: Where it listens.
    """

    destination: "Address"

    def __str__(self) -> str:
        return f"the destination at {self.destination}"

    def destination_of(self, _source: "Connection") -> "Address":
        """Return where a source's connection goes on to."""
        return self.destination

    async def dial(self, address: "Address") -> "Connection":
        """Connect to the destination; see `proxy.dialling.dial`."""
        return await dial(address)
