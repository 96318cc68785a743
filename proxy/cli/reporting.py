"""Where reports go: a file, to whose end they are added, or standard output."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        line = report.as_json().encode() + b"\n"
        try:
            written = file.write(line)
            file.flush()
            if written is not None and written < len(line):
                # What fits on a full disk is no report, and would spoil the next one's line.
                self._take_back(file, written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            name = "standard output" if self._name == STDIO else self._name
            raise OSError(error.errno, error.strerror, name) from error

    def _take_back(self, file: "IO[bytes] | io.RawIOBase", written: int) -> None:
        with suppress(OSError):  # a pipe keeps what it got
            os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size - written)

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
