"""The options that bound what is let come, and how long it may take."""

import functools
from collections.abc import Callable
from typing import Any

import click

from proxy.live.session_config import DEFAULT_LIMITS, Limits

_SECONDS = click.FloatRange(min=0)


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options, and pass what they said as `limits`, a `Limits`."""

    @click.option(
        "--max-migrations",
        metavar="N",
        type=click.IntRange(min=1),
        default=DEFAULT_LIMITS.migrations,
        show_default=True,
        help="How many migrations may be under way at once; others are reset, and their sources keep their guests.",
    )
    @click.option(
        "--max-connections",
        metavar="N",
        type=click.IntRange(min=1),
        default=DEFAULT_LIMITS.connections,
        show_default=True,
        help="How many connections there may be at once, of whatever kind.",
    )
    @click.option(
        "--begin-within",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        default=DEFAULT_LIMITS.begin,
        show_default=True,
        help="Let go of connections that have not said by then what they are.",
    )
    @click.option(
        "--idle-ram",
        metavar="SECONDS",
        type=_SECONDS,
        default=DEFAULT_LIMITS.idle_ram or 0,
        show_default=True,
        help="End migrations of which nothing passes for so long while memory is sent; 0 for never: a source may be "
        "held there by its operator (pause-before-switchover). Peers that are gone are noticed after three minutes.",
    )
    @click.option(
        "--idle-state",
        metavar="SECONDS",
        type=_SECONDS,
        default=DEFAULT_LIMITS.idle_state or 0,
        show_default=True,
        help="The same, while the device state is sent and the guest stands; 0 for never.",
    )
    @click.option(
        "--recovery-wait",
        metavar="SECONDS",
        type=_SECONDS,
        default=DEFAULT_LIMITS.recovery or 0,
        show_default=True,
        help="How long a migration that is paused in postcopy is kept for its source to come back; 0 for as long as it "
        "takes. It can be recovered through the proxy later, too, with a report of its own.",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any,  # noqa: ANN401 - click's
        max_migrations: int,
        max_connections: int,
        begin_within: float,
        idle_ram: float,
        idle_state: float,
        recovery_wait: float,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        limits = Limits(
            migrations=max_migrations,
            connections=max_connections,
            begin=begin_within,
            idle_ram=idle_ram or None,
            idle_state=idle_state or None,
            recovery=recovery_wait or None,
        )
        return command(*args, limits=limits, **kwargs)

    return wrapper
