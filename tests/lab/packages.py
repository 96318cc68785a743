"""What Debian packages hold, as a tree in memory: no root needed, no maintainer script run."""

from __future__ import annotations

import posixpath
import re
import subprocess
import tarfile
from typing import TYPE_CHECKING

from tests.lab.cpio import Entry, Executable, File, Symlink
from tests.lab.debian import ImageError
from tests.lab.elf import needed_libraries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

LIBRARIES = "usr/lib/aarch64-linux-gnu"

_OUTSIDE_USR = re.compile(r"(bin|sbin|lib)/")
_LINK_DEPTH = 10


def read_packages(packages: Iterable[Path], wanted: Callable[[str], bool]) -> dict[str, Entry]:
    """Return the files and links of packages by path, as if /bin, /sbin and /lib were links into /usr.

    Args:
        packages: .deb files.
        wanted: says of a path, such as "usr/bin/env", whether to keep it.

    Raises:
        ImageError: a package cannot be read.
    """
    tree: dict[str, Entry] = {}
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacker:
            assert unpacker.stdout is not None
            try:
                with tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive:
                    _read_archive(archive, wanted, tree)
            except tarfile.TarError as error:
                raise ImageError(f"{package}: {error}") from error
        if unpacker.returncode:
            raise ImageError(f"{package}: dpkg-deb failed; remove the file and try again")
    return tree


def with_dependencies(tree: Mapping[str, Entry], roots: Iterable[str]) -> dict[str, Entry]:
    """Return the part of a tree that roots need: what their links lead to, and the libraries they are linked with.

    Raises:
        ImageError: something needed is not in the tree.
    """
    libraries: dict[str, str] = {}
    for path in sorted(tree, key=lambda path: posixpath.dirname(path) == LIBRARIES):
        libraries[posixpath.basename(path)] = path  # the common folder comes last, and wins
    chosen: dict[str, Entry] = {}
    pending = list(roots)
    while pending:
        path = pending.pop()
        if path in chosen:
            continue
        if path not in tree:
            raise ImageError(f"/{path} is in none of the packages")
        entry = chosen[path] = tree[path]
        if isinstance(entry, Symlink):
            pending.append(_target(path, entry))
            continue
        for name in needed_libraries(entry):
            if name not in libraries:
                raise ImageError(f"/{path} needs {name}, which is in none of the packages")
            pending.append(libraries[name])
    return chosen


def resolve(tree: Mapping[str, Entry], path: str) -> File:
    """Return the file that a path leads to.

    Raises:
        ImageError: it leads nowhere.
    """
    for _ in range(_LINK_DEPTH):
        match tree.get(path):
            case File() as file:
                return file
            case Symlink() as link:
                path = _target(path, link)
            case None:
                break
    raise ImageError(f"/{path} is in none of the packages")


def _read_archive(archive: tarfile.TarFile, wanted: Callable[[str], bool], tree: dict[str, Entry]) -> None:
    for member in archive:
        path = _in_usr(posixpath.normpath(member.name).lstrip("/"))
        if not wanted(path):
            continue
        if member.issym():
            tree[path] = Symlink(member.linkname)
        elif member.islnk():
            tree[path] = Symlink("/" + _in_usr(posixpath.normpath(member.linkname).lstrip("/")))
        elif (content := archive.extractfile(member)) is not None:
            kind = Executable if member.mode & 0o111 else File
            tree[path] = kind(content.read())


def _in_usr(path: str) -> str:
    return f"usr/{path}" if _OUTSIDE_USR.match(path) else path


def _target(path: str, link: Symlink) -> str:
    return _in_usr(posixpath.normpath(posixpath.join("/", posixpath.dirname(path), link)).lstrip("/"))
