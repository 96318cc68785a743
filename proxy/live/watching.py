"""Who watches what the relay does: metrics, the service manager."""

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.live.session import Session
    from proxy.report.report import Report


class Arrived(enum.StrEnum):
    """What a connection turned out to be."""

    MIGRATION = "migration"
    MULTIFD = "multifd"
    PREEMPT = "preempt"
    RECOVERY = "recovery"
    PASSED_ON = "passed_on"
    """No migration: the destination speaks first, as an NBD server does."""
    SILENT = "silent"
    """It left, or was let go, without a word."""
    REFUSED = "refused"
    """It may not come, or what it brings may not go on."""
    GARBAGE = "garbage"
    """What it brings is no migration, and went nowhere."""
    BROKEN = "broken"
    """It broke, or failed its TLS handshake, before it was known what it is."""
    TOO_MANY = "too_many"
    """There are as many as there may be."""


class Watcher:
    """Is told what happens; this one does nothing with it. It must be quick, for the relay waits for it."""

    def arrived(self, what: Arrived) -> None:
        """A connection turned out to be something."""

    def begins(self, session: "Session") -> None:
        """A migration begins."""

    def ends(self, session: "Session", report: "Report") -> None:
        """A migration has ended."""

    def reloads(self) -> None:
        """What the operator decides is being read anew."""

    def reloaded(self, *, well: bool) -> None:
        """What the operator decides was read anew, or could not be."""

    def drains(self) -> None:
        """No more migrations are taken."""
