"""Reading and writing whole pieces at given offsets of a file (pread, pwrite)."""

import os


def read_at(file: int, position: int, length: int) -> bytes:
    """Return so many bytes from a place on; fewer where the file ends.

    Raises:
        OSError: It cannot be read.
    """
    out = bytearray()
    while len(out) < length and (piece := os.pread(file, length - len(out), position + len(out))):
        out += piece
    return bytes(out)


def read_into(file: int, position: int, buffer: memoryview) -> int:
    """Fill a buffer from a place on; return with how many bytes, fewer where the file ends.

    Raises:
        OSError: It cannot be read.
    """
    done = 0
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
