"""Where reports go: a file, or standard output."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from proxy.errors import ConfigError
from proxy.report import Report
from proxy.stdio import STDIO


@contextmanager
def report_file(name: str | None) -> Iterator[Callable[[Report], None]]:
    """Open the file `name` anew, and yield a function that writes a report to it at once, a line of JSON each.

    `-` is standard output; None takes nothing. One report makes a JSON document.

    Raises:
        ConfigError: The file cannot be opened.
    """
    if name is None:
        yield lambda _: None
    elif name == STDIO:
        yield lambda report: _write("standard output", sys.stdout.buffer, report)
    else:
        try:
            file = open(name, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"{name}: {error.strerror}") from error
        with file:
            yield lambda report: _write(name, file, report)


def _write(name: str, file: IO[bytes] | io.RawIOBase, report: Report) -> None:
    try:
        file.write(report.as_json().encode() + b"\n")
        file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error
