"""Writing a file that takes its name only when it is complete."""

import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from proxy.errors import ProxyError
from proxy.stdio import STDIO

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def complete_file(name: str, mode: int | None = None) -> "Iterator[IO[bytes]]":
    """Open a file that takes its name only when the block ends without an error.

    Standard output, as `-`, and what is no regular file are written as it goes.

    Args:
        name: The file.
        mode: Who may read and write it; None for what the umask leaves.

    Raises:
        ProxyError: It cannot be created, or written.
    """
    if name == STDIO:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = _destination(name)
    try:
        if path.exists() and not path.is_file():
            file, temporary = open(path, "wb"), None  # noqa: SIM115
        else:
            import tempfile

            descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
            file = open(descriptor, "wb")  # noqa: SIM115
    except OSError as error:
        raise ProxyError(f"{name}: {error.strerror}") from error
    try:
        with _writing(name):
            with file:
                yield file
                if temporary is not None:
                    os.fchmod(file.fileno(), 0o666 & ~_umask() if mode is None else mode)
            if temporary is not None:
                os.replace(temporary, path)
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _destination(name: str) -> Path:
    """Follow links to the file that is to be written."""
    try:
        return Path(name).resolve()
    except (OSError, RuntimeError) as error:
        # A loop of links is a RuntimeError before Python 3.13.
        raise ProxyError(f"{name}: {error}") from error


@contextmanager
def _writing(name: str) -> "Iterator[None]":
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ProxyError(f"{name}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
