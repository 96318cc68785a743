"""How files are packed: xz, gzip, bzip2, zstd or not at all; told by their first bytes, or by their names."""

import bz2
import gzip
import io
import lzma
import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

from proxy.captures.complete_file import complete_file

if TYPE_CHECKING:
    from collections.abc import Iterator

NOT_PACKED: Final = ("raw", "sparse")
_MAGICS: Final = {b"\xfd7zXZ\x00": "xz", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES: Final = {".xz": "xz", ".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd"}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands before a stream in a libvirt save file, and how the stream is packed after it."""

    head: bytes
    packing: str


def packing_at(start: bytes) -> str:
    """Return how a file that begins with these bytes is packed; `raw`: not at all."""
    return next((kind for magic, kind in _MAGICS.items() if start.startswith(magic)), "raw")


def unpacker(packing: str, file: io.FileIO) -> Any:  # noqa: ANN401
    """Return what reads a packed file's content: it has `readinto`."""
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
def packing_file(name: str, mode: int, envelope: Envelope | None = None) -> "Iterator[IO[bytes]]":
    """Open a file for a stream; it takes its name only when the block ends without an error.

    Args:
        name: The file; .xz, .gz, .bz2 and .zst say how it is packed. `-` is standard output.
        mode: Who may read and write it.
        envelope: What stands before the stream, and says how it is packed instead; None for a plain capture.

    Raises:
        ConfigError: It cannot be created.
        ProxyError: It cannot be written.
    """
    with complete_file(name, mode) as file:
        if envelope is not None:
            file.write(envelope.head)
            packing = envelope.packing
        else:
            packing = packing_of(name)
        with _packer(packing, file) as packer:
            yield packer


def packing_of(name: str) -> str:
    """Return how a file of that name is packed; `raw`: not at all."""
    return _SUFFIXES.get(os.path.splitext(name)[1], "raw")


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
