"""The folder that keeps what the lab downloads and builds, outside the tree."""

from __future__ import annotations

import fcntl
import os
import posixpath
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE_VARIABLE = "VMSTATE_PROXY_LAB_CACHE"
"""Environment variable: the folder."""


def cache_folder() -> Path:
    """Return the folder; it need not be there yet."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or posixpath.expanduser("~/.cache")
    return Path(base).absolute() / "vmstate-proxy" / "lab"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that of two builders at once the second waits and finds what the first has built."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_older(cache: Path, name: str, newest: Path) -> None:
    """Keep what the last two recipes made of NAME, in folders NAME-DIGEST: a checkout may lag behind."""
    made = [path for path in cache.glob(f"{name}-*") if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", path.name)]
    others = sorted((path for path in made if path != newest), key=lambda path: path.stat().st_mtime)
    for path in others[:-1]:
        shutil.rmtree(path, ignore_errors=True)
