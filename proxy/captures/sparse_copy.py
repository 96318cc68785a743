"""Copying a file with its holes."""

import errno
import os
from typing import Final

from proxy.captures.positioned_io import size_of

_STEP: Final = 64 << 20
_FALLBACK_STEP: Final = 1 << 20
_NOT_HERE: Final = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF})
"""What copy_file_range(2) says of file systems and pairs of them that it cannot copy between."""


def copy_sparse(source: int, target: int, length: int | None = None, *, start: int = 0) -> None:
    """Copy a file into one without data there; holes stay holes, and the kernel copies, or shares, the rest if it can.

    Args:
        source: Descriptor of the file; its position is another one afterwards.
        target: Descriptor of the other one; nothing has been written to it from `start` on.
        length: Of how many bytes at most, from the start; None for the whole file.
        start: From where on, in both.

    Raises:
        OSError: One of them cannot be read, or written.
    """
    size = size_of(source)
    size = size if length is None else min(size, length)
    os.ftruncate(target, size)
    position = start
    while (position := _seek(source, position, os.SEEK_DATA, size)) < size:
        end = _seek(source, position, os.SEEK_HOLE, size)
        _copy_range(source, target, position, end)
        position = end


def _seek(source: int, position: int, whence: int, size: int) -> int:
    """Return where data, or a hole, is next; file systems that know no holes tell of one at the end."""
    try:
        return min(os.lseek(source, position, whence), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no more data
            return size
        if error.errno == errno.EINVAL:
            return position if whence == os.SEEK_DATA else size
        raise


def _copy_range(source: int, target: int, position: int, end: int) -> None:
    while position < end:
        try:
            copied = os.copy_file_range(source, target, min(end - position, _STEP), position, position)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            copied = os.pwrite(target, os.pread(source, min(end - position, _FALLBACK_STEP), position), position)
        if not copied:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        position += copied
