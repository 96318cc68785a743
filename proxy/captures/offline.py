"""Captured streams: rewriting them, and reading their vCPUs and sections; constant memory whatever their size."""

import errno
import os
from contextlib import suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Final, Protocol

from formats import reading
from formats.files.mapped_ram import CAPABILITY as MAPPED_RAM
from formats.limits import DEFAULT_DEVICE_STATE_LIMIT
from formats.reading import Skipped
from formats.stream.ending import ANY_LENGTH
from formats.stream.events import AnyEvent, Configuration, TrailingBytes
from formats.stream.trailing import Trailing
from formats.vmstate.device_state import DeviceState
from formats.vmstate.vcpus import open_vcpus
from proxy.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from formats.arm.register_list import RegisterList
    from proxy.rewriter.rewriter import Rewriter

_BUFFER: Final = 1 << 20


class Source(Protocol):
    """What a stream is read from: an unbuffered or buffered binary file."""

    def readinto(self, buffer: bytearray, /) -> int | None:
        """Read into a buffer; 0 is the end."""

    def seekable(self) -> bool:
        """Tell whether it can be stepped over what need not be read."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place in the file."""


def rewrite(source: "Source", sink: IO[bytes] | None, rewriter: "Rewriter", progress: "Callable[[int], None]") -> None:
    """Pass a whole stream through a rewriter.

    Args:
        source: The stream.
        sink: Takes what may go on. None: nothing does, mapped pages are not even read, and the rewriter's
            `replacements` say what would be different.
        rewriter: Judges and changes; its report says what came of it.
        progress: Is told after each step how many bytes were read in it.

    Raises:
        FormatError: The stream is broken, or cannot be read on safely.
        RefusedError: The policy does not let the guest pass.
        KvmError: The destination's kernel cannot be asked.
        OSError: A file cannot be read or written.
    """
    for chunk in _chunks(source):
        for piece in rewriter.feed(chunk) if len(chunk) else rewriter.end():
            if sink is not None:
                sink.write(piece)
            rewriter.report.bytes_out += len(piece)
        progress(len(chunk))
        if sink is None and (skipped := step_over(source, rewriter.skippable)).length:
            rewriter.skip(skipped.length, zeroes=skipped.zeroes)
            rewriter.report.bytes_out += skipped.length


def read_events(
    source: "Source", *, device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT, trailing: Trailing | None = None
) -> "Iterator[AnyEvent]":
    """Yield the events of a whole stream, without reading mapped pages where the source can be sought in.

    Args:
        source: The stream.
        device_state_limit: Bytes of device state held at most.
        trailing: Takes note of what follows the stream. None: nothing may.

    Raises:
        FormatError: The stream is broken, or cannot be read on safely.
        OSError: It cannot be read.
    """
    for event in reading.read_events(
        _chunks(source),
        device_state_limit=device_state_limit,
        skip=partial(step_over, source),
        take_trailing=trailing is not None,
    ):
        if trailing is not None and isinstance(event, TrailingBytes):
            trailing.add(event)
        yield event


def read_vcpus(
    source: "Source", *, device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT, trailing: Trailing | None = None
) -> "list[RegisterList]":
    """Return the registers of every arm64 vCPU of a whole stream. Takes and raises as `read_events` does."""
    return [
        registers
        for event in read_events(source, device_state_limit=device_state_limit, trailing=trailing)
        if isinstance(event, DeviceState)
        for registers in open_vcpus(event)
    ]


def has_mapped_ram(source: "Source") -> bool:
    """Tell whether a stream says that it is a mapped-ram stream. Raises as `read_events` does."""
    for event in read_events(source):
        if event.offset:
            return isinstance(event, Configuration) and MAPPED_RAM in event.capabilities
    return False


def _chunks(source: "Source") -> "Iterator[memoryview]":
    """Yield views of one reused buffer; the last is empty, and says that the stream has ended."""
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    while True:
        length = source.readinto(buffer)
        yield view[:length]
        if not length:
            return


def step_over(source: "Source", length: int) -> Skipped:
    """Step over at most so many bytes, not past the end of the file; none where they have to be read."""
    if not length or not source.seekable():
        return Skipped(0)
    here = source.seek(0, os.SEEK_CUR)
    there = min(here + length, source.seek(0, os.SEEK_END))
    zeroes = length == ANY_LENGTH and _is_hole(source, here, there)
    return Skipped(source.seek(there) - here, zeroes)


def step_over_hole(source: "Source", length: int) -> int:
    """Step over at most so many bytes of a hole in a file; return how many, 0 where there is none, or the file ends."""
    here = source.seek(0, os.SEEK_CUR)
    there = min(here + length, source.seek(0, os.SEEK_END))
    hole = there - here if there > here and _is_hole(source, here, there) else 0
    source.seek(here + hole)
    return hole


def count_the_rest(source: "Source", trailing: Trailing) -> None:
    """Take note of what follows a stream, from where the source was read to; it is not read where it can be sought in.

    The guest is where it goes by then, so what cannot be read of this is no error any more: it is not counted.
    """
    with suppress(ProxyError, OSError):
        skipped = step_over(source, ANY_LENGTH)
        trailing.add(TrailingBytes(0, b"", length=skipped.length, zeroes=skipped.zeroes))
        for chunk in _chunks(source):
            trailing.add(TrailingBytes(0, chunk, length=len(chunk)))


def _is_hole(source: "Source", start: int, end: int) -> bool:
    """Tell whether a stretch of a file is a hole, as far as its file system can tell."""
    try:
        return source.seek(start, os.SEEK_DATA) >= end
    except OSError as error:
        return error.errno == errno.ENXIO
    except ValueError:
        return False  # no file, and knows no holes
