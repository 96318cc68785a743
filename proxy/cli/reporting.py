"""Where reports go: a file, to whose end they are added, or standard output."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from proxy.errors import ProxyError
from proxy.report.report import Report
from proxy.stdio import STDIO


class ReportFile:
    """Takes reports, a line of JSON each. What was in the file before stays: it may be an audit.

    Get it from `report_file`.
    """

    def __init__(self, name: str | None) -> None:
        """Open the file; see `report_file`."""
        self._name = name
        self._file = self._opened()

    def add(self, report: Report) -> None:
        """Write a report at once; raises OSError."""
        file: IO[bytes] | io.RawIOBase | None = sys.stdout.buffer if self._name == STDIO else self._file
        if file is None:
            return
        try:
            file.write(report.as_json().encode() + b"\n")
            file.flush()
        except OSError as error:
            name = "standard output" if self._name == STDIO else self._name
            raise OSError(error.errno, error.strerror, name) from error

    def reopen(self) -> None:
        """Open the file anew by its name, for whoever has moved it away; what cannot be opened stays as it was.

        Raises:
            ProxyError: It cannot be opened.
        """
        old, self._file = self._file, self._opened()
        if old is not None:
            old.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> io.RawIOBase | None:
        if self._name is None or self._name == STDIO:
            return None
        try:
            return open(self._name, "ab", buffering=0)
        except OSError as error:
            raise ProxyError(f"{self._name}: {error.strerror}") from error


@contextmanager
def report_file(name: str | None) -> Iterator[ReportFile]:
    """Open a file for reports, for the length of the block.

    `-` is standard output; None takes nothing. One report makes a JSON document.

    Raises:
        ProxyError: The file cannot be opened.
    """
    file = ReportFile(name)
    try:
        yield file
    finally:
        file.close()
