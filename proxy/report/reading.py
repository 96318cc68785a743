"""Reading reports again, those of older versions among them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

from proxy.errors import ProxyError


@dataclass(frozen=True, slots=True)
class Line:
    """One report, as far as people look at it.

    Attributes:
        found: What stands in the file, with all its keys.
    """

    found: dict[str, Any]

    @property
    def started(self) -> datetime | None:
        """When the migration began, in UTC; None where the report does not say, as before version 0.2."""
        text = self.found.get("started")
        return None if text is None else datetime.fromisoformat(text).astimezone(UTC)

    @property
    def seconds(self) -> float | None:
        """How long it took."""
        ended = self.found.get("ended")
        if self.started is None or ended is None:
            return None
        return (datetime.fromisoformat(ended) - self.started).total_seconds()

    @property
    def outcome(self) -> str:
        """What became of it."""
        return str(self.found["outcome"])

    @property
    def guest(self) -> str:
        """The guest's name, or its UUID; empty where neither is known."""
        guest = self.found.get("guest") or {}
        return guest.get("name") or guest.get("uuid") or ""

    @property
    def registers(self) -> list[str]:
        """The names of what was changed, or would have been."""
        changes = self.found.get("changes", []) or self.found.get("would_change", [])
        return sorted({change["register"] for change in changes})


def read_reports(name: str, file: IO[bytes]) -> Iterator[Line]:
    """Read a file that `run --report` or `rewrite --report` wrote, a line at a time.

    Raises:
        ProxyError: A line is no report; the message names it. The last one may have been cut by a crash, too.
    """
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            found = json.loads(text)
            line = Line(found)
            if not isinstance(found, dict) or not isinstance(found.get("schema_version"), int):
                raise TypeError("no schema_version")
            _ = line.outcome, line.seconds, line.guest, line.registers
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProxyError(f"{name}:{number}: this line is no report of a migration: {error}") from error
        yield line


def since(lines: Iterable[Line], moment: datetime) -> Iterator[Line]:
    """Leave out what began earlier, or does not say when."""
    return (line for line in lines if line.started is not None and line.started >= moment)
