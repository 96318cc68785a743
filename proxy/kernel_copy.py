"""Rewriting a stream file into a copy of it that the kernel makes, or that shares its bytes with it.

The copy is made step by step, and it is the copy that is read and judged, which nobody else knows of yet. So what was
judged is what the copy holds, whoever writes to the file meanwhile. Only what does not go on as it came is written.
"""

import os
from typing import TYPE_CHECKING, Final

from proxy.places import read_into, write_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.events import Raw
    from proxy.files import StreamFile
    from proxy.rewriter import Rewriter

_STEP: Final = 1 << 20
"""Bytes; what was just copied is still in the processor's cache when it is read."""


def rewrite_copy(stream: "StreamFile", target: int, rewriter: "Rewriter", progress: "Callable[[int], None]") -> None:
    """Pass a whole stream through a rewriter, into a file, where it begins at the same place.

    Raises as `proxy.offline.rewrite` does; ProxyError where the stream cannot be read, OSError also for the copy.

    Args:
        stream: At its start, in a file that holds it as it is.
        target: Descriptor of the file, open to be read, too.
        rewriter: Judges and changes; its report says what came of it.
        progress: Is told after each step how many bytes were read in it.
    """
    copy = _Copy(stream, target)
    buffer = bytearray(_STEP)
    view = memoryview(buffer)
    place, shift, seen = stream.position, 0, 0
    while True:
        length = copy.step(view, shift)
        # Read-only, so that what is a view of the buffer is what the target has already.
        pieces = rewriter.feed(view[:length].toreadonly()) if length else rewriter.end()
        growths = [len(one.after) - len(one.before) for one in rewriter.replacements[seen:]]
        seen += len(growths)
        shift += sum(growths)
        for piece in pieces:
            if any(growths) or not _is_view(piece, buffer):
                write_at(target, place, piece)
            place += len(piece)
            rewriter.report.bytes_out += len(piece)
        progress(length)
        if not length:
            break
    if shift:
        os.ftruncate(target, place)


class _Copy:
    """Copies a stream to the same places of a file, or to shifted ones, and shows what it copied."""

    def __init__(self, stream: "StreamFile", target: int) -> None:
        self._stream = stream
        self._target = target
        self._by_kernel = True

    def step(self, buffer: memoryview, shift: int) -> int:
        """Copy the next bytes; return how many, which then are in the buffer, too; 0 is the end.

        Args:
            buffer: As long as a step.
            shift: By how much the place in the target is later than in the stream's file.
        """
        here = self._stream.position
        # File systems share whole blocks only, at the same places within their blocks.
        most = len(buffer) - here % len(buffer)
        if self._by_kernel:
            try:
                copied = os.copy_file_range(self._stream.fileno(), self._target, most, offset_dst=here + shift)
            except OSError:
                copied = 0
            if copied:
                return read_into(self._target, here + shift, buffer[:copied])
            # It is the end, or cannot be done, or is an error, of which reading and writing say whose it is.
            self._by_kernel = False
        length = self._stream.readinto(buffer[:most])
        write_at(self._target, here + shift, buffer[:length])
        return length


def _is_view(piece: "Raw", buffer: bytearray) -> bool:
    return isinstance(piece, memoryview) and piece.obj is buffer
