"""The option that bounds how much device state of a stream is held."""

import click

from formats.limits import DEFAULT_DEVICE_STATE_LIMIT

device_state_limit_option = click.option(
    "--device-state-limit",
    metavar="MIB",
    type=click.IntRange(1, 4096),
    default=DEFAULT_DEVICE_STATE_LIMIT >> 20,
    show_default=True,
    callback=lambda _context, _option, mebibytes: mebibytes << 20,
    help="Refuse streams with more device state than this; it is held in memory.",
)
"""Gives a command `device_state_limit`, in bytes."""
