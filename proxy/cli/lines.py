"""Lines for people: wrapped to a terminal's width, and left whole where a program may read them."""

import shutil
import sys
import textwrap
from typing import Final

import click

_WIDEST: Final = 100
_NARROWEST: Final = 40


def echo(line: str, *, indent: int = 0) -> None:
    """Print a line to standard output; on a terminal it is wrapped, what follows the first line indented."""
    if sys.stdout.isatty():
        width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
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
