"""Streams in files: opening captures and libvirt save files for reading, packed or not."""

import io
import lzma
import os
import re
import sys
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from formats.errors import FormatError, MalformedStreamError
from formats.files import libvirt_save
from proxy.captures.image_locks import lock_as_qemu
from proxy.captures.packing import NOT_PACKED, Envelope, packing_at, unpacker
from proxy.captures.places import InOneRun
from proxy.captures.unfinished import note_of
from proxy.errors import ConfigError, ProxyError, exit_code_of
from proxy.stdio import STDIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.captures.places import Places
    from proxy.captures.qcow2.image import Image

_FILE_URI: Final = "file:"
_OFFSET_OPTION: Final = ",offset="
_IMAGE_SCHEME: Final = "qcow2:"
_SNAPSHOT_OPTION: Final = ",snapshot="
_SIZE: Final = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([bkmgtpe]?)", re.IGNORECASE)
_SIZE_SUFFIXES: Final = "bkmgtpe"


class HolderError(ProxyError):
    """A libvirt save file, or an image, cannot be read, because of what it says of itself."""

    def __init__(self, name: str, error: FormatError) -> None:
        super().__init__(f"{name}: {error}")
        self.exit_code = exit_code_of(error)


class StreamFile(io.RawIOBase):
    """A captured stream that is read, with errors that name it.

    It is unbuffered below: a buffered reader would fill the whole of a buffer from a slow pipe, deaf to signals.

    Attributes:
        name: What it was opened as.
        path: The file that holds it.
        start: Where in the file the stream begins, in bytes; None where the file does not hold it in one run.
        places: Where in the file its bytes lie; None where it is packed, or in no file.
        envelope: What stood before the stream in a libvirt save file; None for a capture.
    """

    def __init__(
        self,
        name: str,
        file: Any,  # noqa: ANN401
        below: Any = None,  # noqa: ANN401
        envelope: Envelope | None = None,
        start: int | None = None,
        path: str = STDIO,
        places: "Places | None" = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.path = path
        self.places = places if start is None else InOneRun(start)
        self.envelope = envelope
        self.start = start
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

    @property
    def size(self) -> int:
        """How far `position` may go; 0 where that cannot be told."""
        here = self.position
        try:
            size: int = self._below.seek(0, os.SEEK_END)
            self._below.seek(here)
        except OSError:
            return 0
        return size

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell whether the file holds the stream as it is, so that it can be stepped over parts of it."""
        return self.places is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place in the file; offsets count from the start of the file, not of the stream."""
        place: int = self._file.seek(offset, whence)
        return place

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        descriptor: int = self._below.fileno()
        return descriptor

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        """Read into a buffer; 0 is the end.

        Raises:
            ProxyError: It cannot be read on, or unpacked.
        """
        try:
            length: int = self._file.readinto(buffer)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise ProxyError(f"{self.name}: {getattr(error, 'strerror', None) or error}") from error
        return length


@contextmanager
def open_stream(name: str, *, update: bool = False) -> "Iterator[StreamFile]":
    """Open a captured stream for reading; `-` is standard input.

    Files packed with xz, gzip, bzip2 or zstd are unpacked on the way, and so is the stream in a libvirt save file.

    Args:
        name: The file. As for QEMU, `file:PATH,offset=N` is a stream that begins N bytes into a file;
            `qcow2:IMAGE,snapshot=NAME` is the VM state of an internal snapshot.
        update: Whether the file is to be written, too.

    Raises:
        ProxyError: It cannot be opened.
        ConfigError: A rewrite of it broke off, and it is not opened to finish that; or its name has a wrong offset.
        HolderError: It is a libvirt save file, or an image, that cannot be read.
    """
    if name == STDIO:
        yield StreamFile(name, getattr(sys.stdin.buffer, "raw", sys.stdin.buffer))
        return
    in_image = image_and_snapshot(name)
    path, offset = file_and_offset(name) if in_image is None else (in_image[0], 0)
    with _open_file(name, path, update=update) as file:
        if in_image is None:
            yield _opened(name, path, file, offset)
        else:
            yield _in_image(name, path, file, in_image[1])


@contextmanager
def open_image(path: str) -> "Iterator[Image]":
    """Open an image for a look at its snapshots.

    Raises:
        ProxyError: It cannot be opened.
        HolderError: It is no image that can be read.
    """
    with _open_file(path, path, update=False) as file:
        yield _image(path, file)


@contextmanager
def _open_file(name: str, path: str, *, update: bool) -> "Iterator[io.FileIO]":
    """Open a file that no other process is changing, as far as QEMU's locks tell."""
    if not update and os.path.exists(note_of(path)):
        raise ConfigError(
            f"{name}: a rewrite --in-place of it broke off, and it is half the old and half the new; run that again, "
            f"which finishes it ({note_of(path)} has the rest)"
        )
    try:
        file = open(path, "r+b" if update else "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise ProxyError(f"{name}: {error.strerror}") from error
    with file:
        if update:
            _lock(name, file, update=True)
        yield file


def _lock(name: str, file: io.FileIO, *, update: bool) -> None:
    try:
        lock_as_qemu(file.fileno(), update=update)
    except ProxyError as error:
        raise ProxyError(f"{name}: {error}") from error


def image_and_snapshot(name: str) -> tuple[str, str | None] | None:
    """Return the image and the snapshot that a name stands for; None where it names no image.

    `qcow2:IMAGE,snapshot=NAME` names a snapshot, `qcow2:IMAGE` all of them.
    """
    if not name.startswith(_IMAGE_SCHEME):
        return None
    path, option, snapshot = name.removeprefix(_IMAGE_SCHEME).partition(_SNAPSHOT_OPTION)
    return path, snapshot if option else None


def file_and_offset(name: str) -> tuple[str, int]:
    """Return the path that a name stands for, and where in that file the stream begins.

    Source: QEMU `migration/file.c` (`file_parse_offset`), `util/cutils.c` (`qemu_strtosz`; no fractions here).

    Raises:
        ConfigError: The offset is no number of bytes.
    """
    if not name.startswith(_FILE_URI):
        return name, 0
    path, option, offset = name.removeprefix(_FILE_URI).partition(_OFFSET_OPTION)
    if not option:
        return path, 0
    size = _SIZE.fullmatch(offset)
    if size is None:
        raise ConfigError(f"{name}: offset {offset!r} is no number of bytes, such as 4096, 0x1000 or 1M")
    return path, int(size[1], 0) << 10 * _SIZE_SUFFIXES.index(size[2].lower() or "b")


def _opened(name: str, path: str, file: io.FileIO, offset: int) -> StreamFile:
    if not file.seekable():
        if offset:
            raise ConfigError(f"{name}: what is no file has no offset")
        return StreamFile(name, file)
    try:
        file.seek(offset)
        start = file.read(libvirt_save.HEADER_SIZE)
        if libvirt_save.is_save_file(start):
            header = libvirt_save.parse_header(start)
            rest = file.read(header.data_length)
            if len(rest) < header.data_length:
                raise MalformedStreamError("this libvirt save file ends within its XML", offset=len(start) + len(rest))
            return _stream_file(name, path, header.format, file, Envelope(start + rest, header.format))
        file.seek(offset)
    except OSError as error:
        raise ProxyError(f"{name}: {error.strerror}") from error
    except FormatError as error:
        raise HolderError(name, error) from error
    return _stream_file(name, path, packing_at(start), file, None)


def _image(path: str, file: io.FileIO) -> "Image":
    from proxy.captures.qcow2.image import Image

    try:
        return Image.read(file.fileno())
    except FormatError as error:
        raise HolderError(path, error) from error
    except OSError as error:
        raise ProxyError(f"{path}: {error.strerror}") from error


def _in_image(name: str, path: str, file: io.FileIO, snapshot: str | None) -> StreamFile:
    """Open the VM state of a snapshot; a QEMU that writes to the image may be about to move it."""
    from proxy.captures.qcow2.vm_state import VmState

    _lock(path, file, update=file.writable())
    image = _image(path, file)
    if snapshot is None:
        raise ConfigError(f"{path}: say which snapshot: {name},snapshot=NAME; {image.listed}")
    try:
        state = VmState(image, image.snapshot(snapshot))
    except FormatError as error:
        raise HolderError(path, error) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except OSError as error:
        raise ProxyError(f"{path}: {error.strerror}") from error
    return StreamFile(name, state, path=path, places=state)


def _stream_file(name: str, path: str, packing: str, file: io.FileIO, envelope: Envelope | None) -> StreamFile:
    start = file.tell() if packing in NOT_PACKED else None
    return StreamFile(name, unpacker(packing, file), file, envelope, start, path)
