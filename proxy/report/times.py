"""How long the phases of a live migration took, told while it passes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Times:
    """Stopwatches of one migration, in seconds; None for what did not come, and in a file.

    Attributes:
        ram: From the migration's first byte to the first of its device state.
        held: From there until all of the device state may go on. The guest stands.
        trial: What the destination's kernel took to be asked, of `held`.
        last_in_to_first_out: From the last byte of device state in to its first byte out.
        received: When the last bytes came, by `time.perf_counter`.
        holding_since: Since when device state is held; None when none is.
    """

    ram: float | None = None
    held: float | None = None
    trial: float | None = None
    last_in_to_first_out: float | None = None
    received: float = 0.0
    _began: float | None = None
    holding_since: float | None = None

    def begin(self) -> None:
        """The migration begins."""
        self._began = self.received = time.perf_counter()

    def holds(self) -> None:
        """Device state is being held. What comes early, amid the RAM, does not count once more follows."""
        if self.holding_since is None and self._began is not None:
            self.holding_since = self.received  # its first bytes came with these
            self.ram = self.holding_since - self._began

    def let_go(self) -> None:
        """What was held may go on."""
        if self.holding_since is not None:
            now = time.perf_counter()
            self.held = now - self.holding_since
            self.last_in_to_first_out = now - self.received
            self.holding_since = None

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Count what the block takes as a trial."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.trial = (self.trial or 0.0) + time.perf_counter() - began

    def as_dict(self) -> dict[str, float | None]:
        """Return them as they go into JSON, in microseconds' precision."""
        told = {
            "ram": self.ram,
            "held": self.held,
            "trial": self.trial,
            "last_in_to_first_out": self.last_in_to_first_out,
        }
        return {name: None if value is None else round(value, 6) for name, value in told.items()}
