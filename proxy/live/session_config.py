"""What the operator has decided for all migrations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.limits import DEFAULT_DEVICE_STATE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.judging.judge import Judge
    from proxy.judging.verdict import Registers
    from proxy.net.route import Route

DEFAULT_VMDESC_WAIT: Final = 1.0
"""Seconds to wait for a vmdesc after what looks like the end; sources send it in the same breath, or never."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What every migration through one listener has in common.

    Attributes:
        route: How the destination is reached.
        judge: What it accepts, and what the operator vouches for.
        allow_no_return_path: Whether sources without a return path may come.
        device_state_limit: Bytes of device state held at most.
        vmdesc_wait: Seconds to wait for a vmdesc after what looks like the end.
        source: What the guests of the source look like, where it is known ahead; postcopy is judged by it early.
    """

    route: "Route"
    judge: "Judge"
    allow_no_return_path: bool = False
    device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT
    vmdesc_wait: float = DEFAULT_VMDESC_WAIT
    source: "Sequence[Registers]" = ()
