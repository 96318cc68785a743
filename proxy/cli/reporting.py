"""Where reports go: a file, or standard output."""

import sys
from typing import IO

from proxy.errors import ConfigError
from proxy.files import STDIO
from proxy.report import Report


class ReportFile:
    """Takes reports, a line of JSON each; one report makes a JSON document."""

    def __init__(self, name: str | None) -> None:
        """Open the file `name` anew; `-` is standard output, None takes nothing.

        Raises:
            ConfigError: It cannot be written.
        """
        self._file: IO[str] | None
        try:
            if name is None or name == STDIO:
                self._file = sys.stdout if name else None
            else:
                self._file = open(name, "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"{name}: {error.strerror}") from error

    def add(self, report: Report) -> None:
        """Write a report at once."""
        if self._file is not None:
            self._file.write(report.as_json() + "\n")
            self._file.flush()
