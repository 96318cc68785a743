"""The options that say what is logged, and how."""

import functools
from collections.abc import Callable
from typing import Any

import click

from proxy.log import LEVELS, LogFormat, set_up_log


def log_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options, and set the log up as they say."""

    @click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        default="info",
        show_default=True,
        help="The least that is said: info has every migration, warning those that did not arrive.",
    )
    @click.option(
        "--log-format",
        type=click.Choice([form.value for form in LogFormat]),
        default=LogFormat.TEXT.value,
        show_default=True,
        help="How lines stand on standard error; journal has the priorities that systemd reads.",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any,  # noqa: ANN401 - click's
        log_level: str,
        log_format: str,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        set_up_log(log_level, LogFormat(log_format))
        return command(*args, **kwargs)

    return wrapper
