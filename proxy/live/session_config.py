"""What the operator has decided for all migrations."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from formats.limits import DEFAULT_DEVICE_STATE_LIMIT
from proxy.errors import RefusedError
from proxy.net.allowed_sources import AllowedSources
from proxy.policy.policy import Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.fleet.destinations import Destinations
    from proxy.judging.judge import Judge
    from proxy.judging.verdict import Registers
    from proxy.net.route import Route
    from proxy.net.tls.roles import ServerTls


@dataclass(frozen=True, slots=True)
class Limits:
    """What is let come, and how long it may take; for each there is a line in the log, and a metric.

    Attributes:
        migrations: How many may be under way at once.
        connections: How many connections there may be at once, of migrations and of whatever else comes.
        begin: Seconds in which a connection has to say what it is: TLS, and the stream's first bytes.
        idle_ram: Seconds in which nothing may come while the guest's memory is sent; None for no limit.
        idle_state: The same, while the device state is: the guest stands, and nothing can be paused there.
        recovery: Seconds for which a migration that is paused in postcopy is kept; None for no limit.
    """

    migrations: int = 64
    connections: int = 2048
    begin: float = 30.0
    idle_ram: float | None = None
    idle_state: float | None = 60.0
    recovery: float | None = 600.0


DEFAULT_LIMITS: Final = Limits()

DEFAULT_VMDESC_WAIT: Final = 1.0
"""Seconds to wait for a vmdesc after what looks like the end; sources send it in the same breath, or never."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What every migration through one listener has in common.

    Attributes:
        route: How the destination is reached.
        judge: What it accepts, and what the operator vouches for.
        destinations: The judges of a fleet's destinations, which count in place of `judge`; None for that one.
        allow_no_return_path: Whether sources without a return path may come.
        device_state_limit: Bytes of device state held at most.
        vmdesc_wait: Seconds to wait for a vmdesc after what looks like the end.
        source: What the guests of the source look like, where it is known ahead; postcopy is judged by it early.
        tls: What sources speak; None for plain text.
        plain_too: Whether, with `tls`, they may speak plain text, too: redirected ones may be of either kind.
        sources: Who may connect.
        limits: What is let come, and how long it may take.
    """

    route: "Route"
    judge: "Judge"
    allow_no_return_path: bool = False
    device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT
    vmdesc_wait: float = DEFAULT_VMDESC_WAIT
    source: "Sequence[Registers]" = ()
    tls: "ServerTls | None" = None
    plain_too: bool = False
    sources: AllowedSources = field(default_factory=AllowedSources)
    limits: Limits = DEFAULT_LIMITS
    destinations: "Destinations | None" = None

    def prepare(self) -> None:
        """Load what verdicts need, so that no guest stands while that is read."""
        if self.destinations is None:
            self.judge.prepare()
        else:
            self.destinations.prepare()

    def judge_of(self, host: str) -> "Judge":
        """Return the judge of the guests that go to a host; where that is not known, one that knows no destination."""
        try:
            return self.judge if self.destinations is None else self.destinations.judge_of(host)
        except RefusedError:
            return self.judge

    def check_known(self, host: str) -> None:
        """See that a destination is known, unless nothing is to be changed anyway.

        Raises:
            RefusedError: It is not; the message says how it would be.
        """
        if self.destinations is not None and self.judge.policy.mode is not Mode.OBSERVE:
            self.destinations.judge_of(host)
