"""What a rewritten stream changes in the file that holds it: a handful of bytes near its end.

Written in place, the changes are first noted in a file beside it, which goes when they are all on the disk. What breaks
off in between, be it the machine, is finished from the note by the next run (`finish`).
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from proxy.captures.positioned_io import read_at, write_at
from proxy.captures.stream_files import note_of
from proxy.errors import ConfigError, ProxyError
from proxy.judged_state import Replacement

_SCHEMA_VERSION: Final = 1
_APART: Final = 16
"""Bytes; differences that are closer than this are one change, so that none cuts a register in two."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a file.

    Attributes:
        position: Where it begins, in bytes from the file's start.
        before: The bytes there.
        after: What replaces them; where it is shorter, they are the file's last.
    """

    position: int
    before: bytes
    after: bytes


@dataclass(frozen=True, slots=True)
class Patch:
    """The changes of a file.

    Attributes:
        changes: In the order of the file.
        old_size: Bytes of the file before.
        size: Bytes of the file when they are made.
    """

    changes: tuple[Change, ...]
    old_size: int
    size: int

    def write(self, file: int) -> None:
        """Make the changes, and see them to the disk."""
        for change in self.changes:
            write_at(file, change.position, change.after)
        os.fsync(file)
        if os.fstat(file).st_size != self.size:
            os.ftruncate(file, self.size)
            os.fsync(file)


def check_unchanged(file: int, replacements: Sequence[Replacement], start: int) -> None:
    """See that a file still holds what was judged, its stream beginning at `start`.

    Raises:
        ProxyError: It does not.
    """
    for one in replacements:
        if read_at(file, start + one.offset, len(one.before)) != one.before:
            raise ProxyError("it was changed by someone else while it was judged")


def patch_of(replacements: Sequence[Replacement], start: int, size: int) -> Patch:
    """Return what replacements change in a file.

    Args:
        replacements: Those of a stream that was read to its end.
        start: Where the stream begins in the file.
        size: Bytes of the file.

    Raises:
        ProxyError: Something would have to move that is not at the end of the file.
    """
    changes: list[Change] = []
    old_size = size
    for one in replacements:
        after, position = one.after, start + one.offset
        if len(after) == len(one.before):
            changes += (
                Change(position + at, one.before[at:end], after[at:end]) for at, end in _runs(one.before, after)
            )
            continue
        if position + len(one.before) != size:
            raise ProxyError("registers have to be left out, and what follows them in the file cannot move")
        same = next(
            (at for at, (old, new) in enumerate(zip(one.before, after, strict=False)) if old != new), len(after)
        )
        changes.append(Change(position + same, one.before[same:], after[same:]))
        size += len(after) - len(one.before)
    return Patch(tuple(changes), old_size, size)


def _runs(before: bytes, after: bytes) -> Iterator[tuple[int, int]]:
    """Yield where two strings of one length differ, from and to; what is close together is one."""
    start = end = -_APART
    for at in (at for at, (one, other) in enumerate(zip(before, after, strict=True)) if one != other):
        if at - end >= _APART:
            if end > start:
                yield start, end
            start = at
        end = at + 1
    if end > start:
        yield start, end


# --- the note


@contextmanager
def noted(path: str, patch: Patch) -> Iterator[None]:
    """Keep a note of the patch beside the file while it is written; an error leaves it there.

    Raises:
        OSError: It cannot be written; the file has not been touched then.
    """
    name = note_of(path)
    folder, base = os.path.split(name)
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
    right_size = os.fstat(file).st_size in (patch.old_size, patch.size)
    if not (right_size and all(_is_on_the_way(file, one) for one in patch.changes)):
        raise ConfigError(
            f"{name}: this note of a rewrite that broke off is of another file, or an older one: remove it"
        )
    patch.write(file)
    os.unlink(name)
    _sync_folder(os.path.dirname(name))
    return True


def _is_on_the_way(file: int, change: Change) -> bool:
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
