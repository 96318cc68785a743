"""Taking what is only to be wondered at, or not."""

import click

from formats.stream.trailing import Trailing

strict_option = click.option(
    "--strict", is_flag=True, help="Refuse a file that holds more than the stream, as a state volume may."
)
"""Gives a command `strict`; see `trailing_unless`."""


def trailing_unless(strict: bool) -> Trailing | None:
    """Return what takes note of the bytes after a stream; None where there may be none."""
    return None if strict else Trailing()


def say_trailing(name: str, trailing: Trailing | None) -> None:
    """Say on standard error what follows the stream in a file, if anything does."""
    if trailing is not None and trailing.length:
        click.echo(f"vmstate-proxy: {name}: {trailing}", err=True)
