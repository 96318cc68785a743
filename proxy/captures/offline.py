"""Captured streams: rewriting them, and reading their vCPUs and sections; constant memory whatever their size."""

import os
from functools import partial
from typing import IO, TYPE_CHECKING, Final, Protocol

from formats import reading
from formats.files.mapped_ram import CAPABILITY as MAPPED_RAM
from formats.limits import DEFAULT_DEVICE_STATE_LIMIT
from formats.stream.events import AnyEvent, Configuration
from formats.vmstate.device_state import DeviceState
from formats.vmstate.vcpus import open_vcpus

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
        if sink is None and (skipped := _step_over(source, rewriter.skippable)):
            rewriter.skip(skipped)
            rewriter.report.bytes_out += skipped


def read_events(source: "Source", *, device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT) -> "Iterator[AnyEvent]":
    """Yield the events of a whole stream, without reading mapped pages where the source can be sought in.

    Raises:
        FormatError: The stream is broken, or cannot be read on safely.
        OSError: It cannot be read.
    """
    return reading.read_events(_chunks(source), device_state_limit=device_state_limit, skip=partial(_step_over, source))


def read_vcpus(source: "Source", *, device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT) -> "list[RegisterList]":
    """Return the registers of every arm64 vCPU of a whole stream. Raises as `read_events` does."""
    return [
        registers
        for event in read_events(source, device_state_limit=device_state_limit)
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


def _step_over(source: "Source", length: int) -> int:
    """Step over so many bytes, not past the end of the file; return how many, 0 where they have to be read."""
    if not length or not source.seekable():
        return 0
    here = source.seek(0, os.SEEK_CUR)
    there = min(here + length, source.seek(0, os.SEEK_END))
    return source.seek(there) - here
