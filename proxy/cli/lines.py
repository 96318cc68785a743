"""Lines for people: wrapped to a terminal's width, and left whole where a program may read them."""

import sys
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS: Final = 80
"""What a line may take that is not wrapped to a terminal."""
_MOST_NAMES: Final = 12
_WIDEST: Final = 100
_NARROWEST: Final = 40


def terminal_width() -> int | None:
    """Return how many columns standard output has; None if it is no terminal."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return max(shutil.get_terminal_size().columns, _NARROWEST)


def echo(line: str, *, indent: int = 0) -> None:
    """Print a line to standard output; on a terminal it is wrapped, what follows the first line indented."""
    columns = terminal_width()
    if columns is not None:
        import textwrap

        width = min(columns, _WIDEST)
        line = textwrap.fill(
            line,
            width,
            subsequent_indent=" " * indent,
            drop_whitespace=True,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        )
    click.echo(line)


def first_of(names: "Sequence[str]", where: str) -> str:
    """Return names in one line; of many the first, and where the others stand."""
    if not names:
        return "none"
    more = len(names) - _MOST_NAMES
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if more <= 0 else f"{shown}, and {more} more, which {where} lists"
