"""Progress of long work over a file: a bar on a terminal's standard error, nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.captures.stream_files import StreamFile

_WORTH_A_BAR: Final = 256 << 20
"""Bytes; smaller files are done before a bar is read."""
_WORTH_COUNTING: Final = 500


@contextmanager
def progress_on(name: str, stream: "StreamFile") -> Iterator[Callable[[int], None]]:
    """Yield a function that is told after each step over the file `name`; how far that is, the file knows itself."""
    size = stream.size
    if not sys.stderr.isatty() or size < _WORTH_A_BAR:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=size)
        yield lambda _: bar.update(task, completed=stream.position)


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many more of so many things are done."""
    if not sys.stderr.isatty() or total < _WORTH_COUNTING:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda step: bar.advance(task, step)
