"""Rewriting a stream file into a copy of it that the kernel makes, or that shares its bytes with it.

The copy is made step by step, and it is the copy that is read and judged, which nobody else knows of yet. So what was
judged is what the copy holds, whoever writes to the file meanwhile. It is read where it lies in the page cache: of a
page of RAM only the header is looked at. Only what does not go on as it came is written.
"""

import mmap
import os
from typing import TYPE_CHECKING, Final

from proxy.captures.offline import step_over, step_over_hole
from proxy.captures.positioned_io import read_at, read_into, write_at
from proxy.captures.sparse_copy import copy_sparse

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.frame.event import Raw
    from proxy.captures.stream_files import StreamFile
    from proxy.rewriter.rewriter import Rewriter

_STEP: Final = 4 << 20
"""Bytes; what is mapped of them counts as the process's memory, and two steps' may be for a moment."""

_LOOKED_AT: Final = 1 << 20

_POPULATE_READ: Final = 22
"""MADV_POPULATE_READ, which tells of an error where a mere look at the page would be a SIGBUS. Source: madvise(2)."""


def rewrite_copy(stream: "StreamFile", target: int, rewriter: "Rewriter", progress: "Callable[[int], None]") -> None:
    """Pass a whole stream through a rewriter, into a file, where it begins at the same place.

    Raises as `offline.rewrite` does; ProxyError where the stream cannot be read, OSError also for the copy.

    Args:
        stream: At its start, in a file that holds it as it is.
        target: Descriptor of the file, open to be read, too.
        rewriter: Judges and changes; its report says what came of it.
        progress: Is told after each step how many bytes were read in it.
    """
    copy = _Copy(stream, target)
    place, shift, seen = stream.position, 0, 0
    while True:
        data = copy.step(shift)
        pieces = rewriter.feed(data) if data else rewriter.end()
        growths = [len(one.after) - len(one.before) for one in rewriter.replacements[seen:]]
        seen += len(growths)
        shift += sum(growths)
        if any(growths):
            # They move, and a view of the target must not change before it is written itself.
            pieces = [bytes(piece) for piece in pieces]
        for piece in pieces:
            if not _is_view(piece, data):
                _write_what_differs(target, place, piece)
            place += len(piece)
            rewriter.report.bytes_out += len(piece)
        progress(len(data))
        if not data:
            break
        if (skipped := step_over(stream, rewriter.skippable)).length:
            # What follows the stream keeps its place, and its holes.
            rewriter.skip(skipped.length, zeroes=skipped.zeroes)
            rewriter.report.bytes_out += skipped.length
            copy_sparse(stream.fileno(), target, start=place)
            place += skipped.length
            stream.seek(place)
            shift = 0
    if shift:
        os.ftruncate(target, place)


class _Copy:
    """Copies a stream to the same places of a file, or to shifted ones, and shows what it copied."""

    def __init__(self, stream: "StreamFile", target: int) -> None:
        self._stream = stream
        self._target = target
        self._by_kernel = True
        self._mappable = True
        self._buffer: memoryview | None = None

    def step(self, shift: int) -> memoryview:
        """Copy the next bytes; return what the target has there now, good until the next step; at the end, nothing.

        Args:
            shift: By how much the place in the target is later than in the stream's file.
        """
        here = self._stream.position
        # File systems share whole blocks only, at the same places within their blocks.
        most = _STEP - here % _STEP
        if self._by_kernel and (hole := step_over_hole(self._stream, most)):
            os.ftruncate(self._target, here + shift + hole)
            return self._view(here + shift, hole)
        if self._by_kernel:
            try:
                copied = os.copy_file_range(self._stream.fileno(), self._target, most, offset_dst=here + shift)
            except OSError:
                copied = 0
            if copied:
                return self._view(here + shift, copied)
            # It is the end, or cannot be done, or is an error, of which reading and writing say whose it is.
            self._by_kernel = False
        buffer = self._own_buffer()
        data = buffer[: self._stream.readinto(buffer[:most])]
        write_at(self._target, here + shift, data)
        return data.toreadonly()

    def _view(self, place: int, length: int) -> memoryview:
        """Return what is at a place of the target, mapped where that is possible."""
        if self._mappable:
            start = place - place % mmap.ALLOCATIONGRANULARITY
            try:
                mapped = mmap.mmap(self._target, place + length - start, access=mmap.ACCESS_READ, offset=start)
                mapped.madvise(_POPULATE_READ)
            except (OSError, ValueError):
                # It cannot be done, or is an error, of which reading says which; a file that was cut is a ValueError.
                self._mappable = False
            else:
                return memoryview(mapped)[place - start :]
        buffer = self._own_buffer()
        return buffer[: read_into(self._target, place, buffer[:length])].toreadonly()

    def _own_buffer(self) -> memoryview:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(_STEP))
        return self._buffer


def _write_what_differs(target: int, place: int, piece: "Raw") -> None:
    """Write a piece to a place; holes stay holes where it has zeroes."""
    view = memoryview(piece)
    for start in range(0, len(view), _LOOKED_AT):
        part = bytes(view[start : start + _LOOKED_AT])  # views are compared element by element
        if read_at(target, place + start, len(part)) != part:
            write_at(target, place + start, part)


def _is_view(piece: "Raw", whole: memoryview) -> bool:
    return isinstance(piece, memoryview) and piece.obj is whole.obj
