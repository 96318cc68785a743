"""Rewriting files: into a new one, into a copy that keeps everything at its place, or in place."""

import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final

from formats.errors import FormatError
from proxy.captures.complete_file import complete_file
from proxy.captures.in_place import Patch, check_unchanged, patch_of
from proxy.captures.kernel_copy import rewrite_copy
from proxy.captures.offline import has_mapped_ram, rewrite
from proxy.captures.packing import NOT_PACKED, Envelope, packing_file, packing_of
from proxy.captures.positioned_io import size_of, write_at
from proxy.captures.sparse_copy import copy_sparse
from proxy.captures.stream_files import HolderError, StreamFile
from proxy.captures.unfinished import finish, note_of, noted
from proxy.errors import ConfigError, ProxyError
from proxy.stdio import STDIO

OWNERS_ALONE: Final = 0o600
"""The mode of a file with a guest's memory, where nobody said another."""

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.rewriter.rewriter import Rewriter


def rewrite_to(stream: StreamFile, target: str, rewriter: "Rewriter", progress: "Callable[[int], None]") -> None:
    """Rewrite a stream into another file; raises as `proxy.captures.offline.rewrite` does.

    Where both files hold it as it is, the kernel copies. A mapped-ram file is judged, then copied with its holes, and
    the copy is changed. Where the target cannot have holes, they go there as zeroes.

    Raises:
        ConfigError: The target cannot take what stands before the stream.
    """
    path = os.path.realpath(target)
    if path == os.devnull:
        rewrite(stream, None, rewriter, progress)
    elif stream.start is not None and _is_plain(target, stream.envelope):
        if holds_mapped_ram(stream):
            patch = _judged(stream, rewriter, progress)
            with complete_file(target, mode_of(stream)) as file:
                copy_sparse(stream.fileno(), file.fileno())
                patch.write(file.fileno())
            return
        with complete_file(target, mode_of(stream)) as file:
            if stream.envelope is not None:
                write_at(file.fileno(), 0, stream.envelope.head)
            elif stream.start:
                copy_sparse(stream.fileno(), file.fileno(), stream.start)
                stream.seek(stream.start)
            rewrite_copy(stream, file.fileno(), rewriter, progress)
    elif stream.start and stream.envelope is None:
        raise ConfigError(f"{target}: OUT has to be a plain file, to have the same bytes before the stream")
    else:
        with packing_file(target, mode_of(stream), stream.envelope) as sink:
            rewrite(stream, sink, rewriter, progress)


def mode_of(stream: StreamFile) -> int:
    """Return who may read and write a copy of a stream, which holds a guest's memory: who may the stream's own file."""
    try:
        seen = os.fstat(stream.fileno())
    except OSError:
        return OWNERS_ALONE
    return stat.S_IMODE(seen.st_mode) & 0o666 if stat.S_ISREG(seen.st_mode) else OWNERS_ALONE


def _is_plain(target: str, envelope: Envelope | None) -> bool:
    """Tell whether a target will be a regular file in which the stream is not packed."""
    if target == STDIO or (os.path.exists(target) and not os.path.isfile(target)):
        return False
    return (packing_of(target) if envelope is None else envelope.packing) in NOT_PACKED


def holds_mapped_ram(stream: StreamFile) -> bool:
    """Tell whether a file, as it is, is a mapped-ram file; the stream can be read from its start afterwards."""
    if stream.start is None:
        return False
    try:
        return has_mapped_ram(stream)
    except FormatError:
        return False  # whoever reads all of it says what is wrong
    finally:
        stream.seek(stream.start)


def rewrite_in_place(stream: StreamFile, rewriter: "Rewriter", progress: "Callable[[int], None]") -> bool:
    """Judge a stream, then change its file; return whether an earlier rewrite that broke off was finished first.

    Nothing is written before all of the stream was judged. Raises as `proxy.captures.offline.rewrite` does.

    Args:
        stream: A file opened to be updated.
        rewriter: Judges; its report says what came of it.
        progress: Is told after each step how many bytes were read in it.

    Raises:
        ConfigError: The file does not hold the stream as it is.
        ProxyError: Someone else is at it, or it cannot be written.
    """
    if stream.places is None:
        raise ConfigError(f"{stream.name}: it is packed, or no file, and cannot be changed in place; give OUT")
    path = stream.path
    file = stream.fileno()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ProxyError(f"{stream.name}: another process has locked it") from error
    try:
        finished = finish(path, file)
        patch = _judged(stream, rewriter, progress)
        if patch.changes:
            with noted(path, patch):
                patch.write(file)
    except OSError as error:
        broken_off = f"; run it again, {note_of(path)} has the rest" if os.path.exists(note_of(path)) else ""
        raise ProxyError(f"{stream.name}: {error.strerror or error}{broken_off}") from error
    return finished


def _judged(stream: StreamFile, rewriter: "Rewriter", progress: "Callable[[int], None]") -> Patch:
    assert stream.places is not None
    rewrite(stream, None, rewriter, progress)
    file = stream.fileno()
    trailing = rewriter.report.trailing
    end = rewriter.report.bytes_in - (0 if trailing is None else trailing.length)
    may_shrink = stat.S_ISREG(os.fstat(file).st_mode)
    try:
        check_unchanged(file, rewriter.replacements, stream.places)
        return patch_of(rewriter.replacements, stream.places, end, size_of(file), may_shrink=may_shrink)
    except FormatError as error:
        raise HolderError(stream.path, error) from error
    except ProxyError as error:
        raise ProxyError(f"{stream.name}: {error}") from error
