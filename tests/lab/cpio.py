"""The `newc` archives that Linux unpacks into its first root file system.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


class File(bytes):
    """A regular file's content."""

    __slots__ = ()


class Executable(File):
    """A regular file that may be run."""

    __slots__ = ()


class Symlink(str):
    """Where a symbolic link points."""

    __slots__ = ()


class Sink(Protocol):
    """Where an archive goes."""

    def write(self, data: bytes, /) -> object: ...


Entry = File | Symlink


def write_cpio(out: Sink, entries: Mapping[str, Entry]) -> None:
    """Write an archive: files and links by path (no leading slash); the folders that they need come with them.

    All belong to root. Device nodes are left to devtmpfs, so that whoever writes the archive need not be root.
    """
    folders = sorted(
        {folder for path in entries for folder in _parents(path)}, key=lambda folder: (len(folder), folder)
    )
    number = 0
    for folder in folders:
        number += 1
        _write(out, number, folder, stat.S_IFDIR | 0o755, b"")
    for path, entry in sorted(entries.items()):
        number += 1
        match entry:
            case Symlink():
                _write(out, number, path, stat.S_IFLNK | 0o777, entry.encode())
            case Executable():
                _write(out, number, path, stat.S_IFREG | 0o755, entry)
            case File():
                _write(out, number, path, stat.S_IFREG | 0o644, entry)
    _write(out, 0, _TRAILER, 0, b"")


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _write(out: Sink, inode: int, path: str, mode: int, data: bytes) -> None:
    name = path.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, file size, 4 device numbers, name size, check (not used)
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    out.write(header + b"\0" * (-len(header) % 4))
    out.write(data)
    out.write(b"\0" * (-len(data) % 4))
