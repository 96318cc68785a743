"""The way to one migration's destination: how its connections are made, and who waits there."""

import os
from functools import partial
from typing import TYPE_CHECKING

from proxy.hosts.local_guest import UNKNOWN, Guest, local_guest
from proxy.hosts.qemu import installed_qemu
from proxy.hosts.started_qemu import is_own
from proxy.net.address import TcpAddress
from proxy.net.aside import aside
from proxy.net.tls.connection import TlsConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.hosts.profile import HostProfile
    from proxy.net.address import Address
    from proxy.net.connection import Connection
    from proxy.net.route import Route
    from proxy.report.report import Report


class Way:
    """Connects to where one source's connections go on to.

    Attributes:
        address: Where the destination listens.
        over_tls: Whether the source speaks TLS.
        tls: Whom the destination's certificate names, once it was dialled; None in plain text.
    """

    def __init__(self, route: "Route", address: "Address") -> None:
        self.address = address
        self.over_tls = False
        self.tls: str | None = None
        self._route = route
        self._made: Connection | None = None

    @property
    def tcp(self) -> tuple[str, int] | None:
        """Host and port; None where it is no TCP address."""
        return (self.address.host, self.address.port) if isinstance(self.address, TcpAddress) else None

    @property
    def host(self) -> str:
        """The host that is dialled; empty where it is no TCP address."""
        return "" if self.tcp is None else self.tcp[0]

    async def look(self, report: "Report", profile: "HostProfile | None", warn: "Callable[[str], None]") -> None:
        """Look at who waits there, for the report, and whether the profile is still true, where it is this host."""
        report.known(*await self._guest())
        problem = await self._stale(profile)
        if problem is not None:
            warn(problem)

    async def _stale(self, profile: "HostProfile | None") -> str | None:
        """Say what is wrong with a profile that was made of this host, where the destination is on it."""
        if profile is None or profile.origin is None or self.tcp is None or not is_own(self.host):
            return None
        system = os.uname()
        qemu = await aside("asking for QEMU's version", installed_qemu)
        problem = profile.stale(f"{system.sysname} {system.release}", qemu)
        return None if problem is None else f"{profile.origin.path} is stale: {problem}"

    async def _guest(self) -> Guest:
        """Return which guest waits there, as far as that can be seen from here."""
        if self.tcp is None:
            return UNKNOWN
        return await aside("looking for the destination's QEMU", partial(local_guest, *self.tcp))

    async def dial(self) -> "Connection":
        """Connect to the destination.

        Raises:
            PeerError: It cannot be reached, or not be trusted.
        """
        made, self._made = self._made, None
        connection = made or await self.reach()
        connection = await self._route.secure(connection, self.address, source_speaks_tls=self.over_tls)
        if isinstance(connection, TlsConnection):
            self.tls = connection.common_name
        return connection

    async def reach(self) -> "Connection":
        """Connect to the destination, with no TLS yet.

        Raises:
            PeerError: It cannot be reached.
        """
        return await self._route.dial(self.address)

    def take(self, destination: "Connection") -> None:
        """Take a connection that `reach` has made, in place of the first that `dial` would make."""
        self._made = destination

    def discard(self) -> None:
        """Reset what was made and not dialled."""
        if self._made is not None:
            self._made.reset()
