"""Overwriting files, or not."""

import os

import click

from proxy.errors import ConfigError

force_option = click.option("--force", is_flag=True, help="Overwrite what is there under that name.")
"""Gives a command `force`; see `check_is_free`."""


def check_is_free(name: str, *, force: bool) -> None:
    """See that no file is overwritten that nobody spoke of.

    Raises:
        ConfigError: There is one of that name.
    """
    if not force and os.path.isfile(name):
        raise ConfigError(f"{name}: there is such a file already; --force overwrites it")
