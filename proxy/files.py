"""Streams in files: reading plain or compressed ones, writing output that appears only when it is complete."""

import bz2
import gzip
import io
import lzma
import os
import sys
import tempfile
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from proxy.errors import ConfigError, ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STDIO: Final = "-"

_COMPRESSIONS: Final[dict[bytes, "Callable[[io.FileIO], Any]"]] = {
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
}


class StreamFile(io.RawIOBase):
    """A captured stream that is read, with errors that name it.

    It is unbuffered below: a buffered reader would fill the whole of a buffer from a slow pipe, deaf to signals.
    """

    def __init__(self, name: str, file: Any) -> None:  # noqa: ANN401
        super().__init__()
        self._name = name
        self._file = file

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        """Read into a buffer; 0 is the end.

        Raises:
            ProxyError: It cannot be read on, or unpacked.
        """
        try:
            length: int = self._file.readinto(buffer)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise ProxyError(f"{self._name}: {getattr(error, 'strerror', None) or error}") from error
        return length


@contextmanager
def open_stream(name: str) -> "Iterator[StreamFile]":
    """Open a captured stream for reading; xz, gzip and bzip2 are unpacked on the way, `-` is standard input.

    Raises:
        ConfigError: It cannot be opened.
    """
    if name == STDIO:
        yield StreamFile(name, getattr(sys.stdin.buffer, "raw", sys.stdin.buffer))
        return
    try:
        file = open(name, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    with file:
        yield StreamFile(name, _unpacked(file))


def _unpacked(file: io.FileIO) -> Any:  # noqa: ANN401
    if not file.seekable():
        return file
    start = file.read(6)
    file.seek(0)
    for magic, unpack in _COMPRESSIONS.items():
        if start.startswith(magic):
            return unpack(file)
    return file


@contextmanager
def complete_file(name: str) -> "Iterator[IO[bytes]]":
    """Open a file that takes its name only when the block ends without an error.

    Standard output, as `-`, and what is no regular file are written as it goes.

    Raises:
        ConfigError: It cannot be created.
        ProxyError: It cannot be written.
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
            descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
            file = open(descriptor, "wb")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    try:
        with _writing(name):
            with file:
                yield file
                if temporary is not None:
                    os.fchmod(file.fileno(), 0o666 & ~_umask())
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
        raise ConfigError(f"{name}: {error}") from error


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
