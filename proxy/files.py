"""Streams in files: reading plain or compressed ones, writing output that appears only when it is complete."""

import bz2
import gzip
import io
import lzma
import os
import sys
import tempfile
import zlib
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from formats import libvirt_save
from formats.errors import FormatError, MalformedStreamError
from proxy.errors import ConfigError, ProxyError, exit_code_of

if TYPE_CHECKING:
    from collections.abc import Iterator

STDIO: Final = "-"

_MAGICS: Final = {b"\xfd7zXZ\x00": "xz", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES: Final = {".xz": "xz", ".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}


class SaveFileError(ProxyError):
    """A libvirt save file cannot be read, because of what its header says."""

    def __init__(self, name: str, error: FormatError) -> None:
        super().__init__(f"{name}: {error}")
        self.exit_code = exit_code_of(error)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands before a stream in a libvirt save file, and how the stream is packed after it."""

    head: bytes
    packing: str


class StreamFile(io.RawIOBase):
    """A captured stream that is read, with errors that name it.

    It is unbuffered below: a buffered reader would fill the whole of a buffer from a slow pipe, deaf to signals.

    Attributes:
        envelope: What stood before the stream; None for a plain capture.
    """

    def __init__(self, name: str, file: Any, below: Any = None, envelope: Envelope | None = None) -> None:  # noqa: ANN401
        super().__init__()
        self.envelope = envelope
        self._name = name
        self._file = file
        self._below = file if below is None else below

    @property
    def position(self) -> int:
        """How many bytes of the file itself have been read, packed as they are; 0 where that cannot be told."""
        try:
            position: int = self._below.tell()
        except OSError:
            return 0
        return position

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
    """Open a captured stream for reading; `-` is standard input.

    Files packed with xz, gzip, bzip2 or zstd are unpacked on the way, and so is the stream in a libvirt save file.

    Raises:
        ConfigError: It cannot be opened.
        SaveFileError: It is a libvirt save file that cannot be read.
    """
    if name == STDIO:
        yield StreamFile(name, getattr(sys.stdin.buffer, "raw", sys.stdin.buffer))
        return
    try:
        file = open(name, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    with file:
        yield _opened(name, file)


def _opened(name: str, file: io.FileIO) -> StreamFile:
    if not file.seekable():
        return StreamFile(name, file)
    try:
        start = file.read(libvirt_save.HEADER_SIZE)
        if libvirt_save.is_save_file(start):
            header = libvirt_save.parse_header(start)
            rest = file.read(header.data_length)
            if len(rest) < header.data_length:
                raise MalformedStreamError("this libvirt save file ends within its XML", offset=len(start) + len(rest))
            return StreamFile(name, _unpacker(header.format, file), file, Envelope(start + rest, header.format))
        file.seek(0)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    except FormatError as error:
        raise SaveFileError(name, error) from error
    packing = next((kind for magic, kind in _MAGICS.items() if start.startswith(magic)), "raw")
    return StreamFile(name, _unpacker(packing, file), file)


def _unpacker(packing: str, file: io.FileIO) -> Any:  # noqa: ANN401
    match packing:
        case "xz":
            return lzma.LZMAFile(file)
        case "gzip":
            return gzip.GzipFile(fileobj=file)
        case "bzip2":
            return bz2.BZ2File(file)
        case "zstd":
            return _ZstdFile(file)
        case _:
            return file


class _ZstdFile:
    """Unpacks zstd; the library is loaded when there is such a file."""

    def __init__(self, file: io.FileIO) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        try:
            return int(self._reader.readinto(buffer))
        except self._error as error:
            raise OSError(f"it cannot be unpacked: {error}") from error


@contextmanager
def packing_file(name: str, envelope: Envelope | None = None) -> "Iterator[IO[bytes]]":
    """Open a file for a stream; it takes its name only when the block ends without an error.

    Args:
        name: The file; .xz, .gz, .bz2 and .zst say how it is packed. `-` is standard output.
        envelope: What stands before the stream, and says how it is packed instead; None for a plain capture.

    Raises:
        ConfigError: It cannot be created.
        ProxyError: It cannot be written.
    """
    with complete_file(name) as file:
        if envelope is not None:
            file.write(envelope.head)
            packing = envelope.packing
        else:
            packing = _SUFFIXES.get(os.path.splitext(name)[1], "raw")
        with _packer(packing, file) as packer:
            yield packer


def _packer(packing: str, file: IO[bytes]) -> Any:  # noqa: ANN401
    match packing:
        case "xz":
            return lzma.LZMAFile(file, "wb")
        case "gzip":
            return gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0)
        case "bzip2":
            return bz2.BZ2File(file, "wb")
        case "zstd":
            import zstandard

            return zstandard.ZstdCompressor().stream_writer(file, closefd=False)
        case _:
            return nullcontext(file)


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
