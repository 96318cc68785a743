"""Reading and writing whole pieces at given offsets of a file or a block device (pread, pwrite)."""

import os
import stat
from typing import Final

_NO_FILE_REACHES: Final = 1 << 63
"""An offset that no file has, and that the kernel takes no question about; a broken table may name it all the same."""


def size_of(file: int) -> int:
    """Return how many bytes a file, or a block device, has; its position stays where it is."""
    found = os.fstat(file)
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    here = os.lseek(file, 0, os.SEEK_CUR)
    size = os.lseek(file, 0, os.SEEK_END)
    os.lseek(file, here, os.SEEK_SET)
    return size


def read_at(file: int, position: int, length: int) -> bytes:
    """Return so many bytes from a place on; fewer where the file ends.

    Raises:
        OSError: It cannot be read.
    """
    out = bytearray()
    if position + length >= _NO_FILE_REACHES:
        return b""
    while len(out) < length and (piece := os.pread(file, length - len(out), position + len(out))):
        out += piece
    return bytes(out)


def read_into(file: int, position: int, buffer: memoryview) -> int:
    """Fill a buffer from a place on; return with how many bytes, fewer where the file ends.

    Raises:
        OSError: It cannot be read.
    """
    done = 0
    if position + len(buffer) >= _NO_FILE_REACHES:
        return 0
    while done < len(buffer) and (length := os.preadv(file, [buffer[done:]], position + done)):
        done += length
    return done


def write_at(file: int, position: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of the data to a place.

    Raises:
        OSError: It cannot be written.
    """
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, position)
        position, rest = position + written, rest[written:]
