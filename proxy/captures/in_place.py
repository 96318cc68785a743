"""What a rewritten stream changes in the file that holds it: a handful of bytes near its end."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proxy.captures.positioned_io import size_of, write_at
from proxy.errors import ProxyError

if TYPE_CHECKING:
    from proxy.captures.places import Places
    from proxy.judged_state import Replacement

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
        if size_of(file) != self.size:
            os.ftruncate(file, self.size)
            os.fsync(file)


def check_unchanged(file: int, replacements: "Sequence[Replacement]", places: "Places") -> None:
    """See that a file still holds what was judged.

    Raises:
        ProxyError: It does not.
    """
    for one in replacements:
        if places.read(file, one.offset, len(one.before)) != one.before:
            raise ProxyError("it was changed by someone else while it was judged")


def patch_of(
    replacements: "Sequence[Replacement]", places: "Places", end: int, size: int, *, may_shrink: bool = True
) -> Patch:
    """Return what replacements change in a file.

    Registers that are left out make the stream shorter. The file becomes so, too, where the stream is its last; where
    something follows, that stays at its place, and what the stream no longer needs before it becomes zeroes.

    Args:
        replacements: Those of a stream that was read to its end.
        places: Where the stream's bytes lie in the file.
        end: Bytes of the stream.
        size: Bytes of the file.
        may_shrink: Whether the file can become shorter, as a block device cannot.

    Raises:
        ProxyError: Something would have to move that is not at the end of the stream.
    """
    changes: list[Change] = []
    old_size = size
    for one in replacements:
        after, shorter = one.after, len(one.before) - len(one.after)
        if shorter and one.offset + len(one.before) != end:
            raise ProxyError("registers have to be left out, and what follows them in the file cannot move")
        if shorter and may_shrink and places.last_to(one.offset + len(one.before), size):
            position = size - len(one.before)
            same = next(
                (at for at, (old, new) in enumerate(zip(one.before, after, strict=False)) if old != new), len(after)
            )
            changes.append(Change(position + same, one.before[same:], after[same:]))
            size -= shorter
            continue
        after += bytes(shorter)
        for start, stop in _runs(one.before, after):
            for position, length in places.runs(one.offset + start, stop - start):
                changes.append(Change(position, one.before[start : start + length], after[start : start + length]))
                start += length
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
