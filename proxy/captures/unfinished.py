"""The note of a rewrite in place: what it is about to write, kept until that is on the disk.

It stands beside the file. What breaks off in between, be it the machine, is finished from it by the next run. A block
device has nothing beside it that outlives the machine's stop, so its note is in the folder of this program's state.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from proxy.captures.positioned_io import read_at, size_of
from proxy.errors import ConfigError

if TYPE_CHECKING:
    from proxy.captures.in_place import Change, Patch

_SCHEMA_VERSION: Final = 1
_SUFFIX: Final = ".unfinished"
_ROOTS_STATE: Final = "/var/lib"
_USERS_STATE: Final = "~/.local/state"
_OWN_FOLDER: Final = "vmstate-proxy"


def note_of(path: str) -> str:
    """Return the name of the note that is kept while a file is changed.

    A block device is known by the name that it was given as: what a link in /dev leads to may be another one after the
    machine's next start.
    """
    if not _is_block_device(path):
        return os.path.realpath(path) + _SUFFIX
    state = _ROOTS_STATE if not os.geteuid() else os.environ.get("XDG_STATE_HOME") or os.path.expanduser(_USERS_STATE)
    return os.path.join(state, _OWN_FOLDER, quote(os.path.abspath(path), safe="") + _SUFFIX)


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


@contextmanager
def noted(path: str, patch: "Patch") -> Iterator[None]:
    """Keep a note of the patch beside the file while it is written; an error leaves it there.

    Raises:
        OSError: It cannot be written; the file has not been touched then.
    """
    import tempfile

    name = note_of(path)
    folder, base = os.path.split(name)
    if _is_block_device(path):
        os.makedirs(folder, mode=0o700, exist_ok=True)
    document = {
        "schema_version": _SCHEMA_VERSION,
        "old_size": patch.old_size,
        "size": patch.size,
        "changes": [
            {"position": one.position, "before": one.before.hex(), "after": one.after.hex()} for one in patch.changes
        ],
    }
    descriptor, temporary = tempfile.mkstemp(prefix=f".{base}.", dir=folder)
    try:
        with open(descriptor, "w") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, name)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)
    yield
    os.unlink(name)
    _sync_folder(folder)


def finish(path: str, file: int) -> bool:
    """Finish what a note beside a file says was begun; return whether there was one.

    Raises:
        ConfigError: The note cannot be read, or is not of this file.
        OSError: The file cannot be written.
    """
    from proxy.captures.in_place import Change, Patch

    name = note_of(path)
    try:
        with open(name, "rb") as opened:
            document = json.load(opened)
        changes = [
            Change(one["position"], bytes.fromhex(one["before"]), bytes.fromhex(one["after"]))
            for one in document["changes"]
        ]
        patch = Patch(tuple(changes), document["old_size"], document["size"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{name}: it cannot be read as the note of a rewrite that broke off: {error}") from error
    right_size = size_of(file) in (patch.old_size, patch.size)
    if not (right_size and all(_is_on_the_way(file, one) for one in patch.changes)):
        raise ConfigError(
            f"{name}: this note of a rewrite that broke off is of another file, or an older one: remove it"
        )
    patch.write(file)
    os.unlink(name)
    _sync_folder(os.path.dirname(name))
    return True


def _is_on_the_way(file: int, change: "Change") -> bool:
    """Tell whether each byte of a change is still what it was, or already what it becomes."""
    now = read_at(file, change.position, len(change.before))
    return len(now) in (len(change.before), len(change.after)) and all(
        now[at : at + 1] in (change.before[at : at + 1], change.after[at : at + 1]) for at in range(len(now))
    )


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
