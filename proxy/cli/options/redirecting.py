"""The options that say which connections nftables redirects."""

import click

from proxy.errors import ConfigError
from proxy.net.redirection import DEFAULT_MARK, MIGRATION_PORTS, parse_ports

ports_option = click.option(
    "--ports",
    metavar="FIRST-LAST",
    default=str(MIGRATION_PORTS),
    show_default=True,
    callback=lambda _context, _option, text: parse_ports(text),
    help="The destinations' ports that are redirected, and dialled on to.",
)
"""Gives a command `ports`, a `PortRange`."""


def _mark(_context: click.Context, _option: click.Parameter, text: str) -> int:
    try:
        mark = int(text, 0)
    except ValueError:
        mark = 0
    if not 1 <= mark < 1 << 32:
        raise ConfigError(f"--mark {text!r}: write a number of 32 bits that is not 0, as {DEFAULT_MARK:#x}")
    return mark


mark_option = click.option(
    "--mark",
    metavar="NUMBER",
    default=hex(DEFAULT_MARK),
    show_default=True,
    callback=_mark,
    help="The firewall mark of the proxy's own connections, by which the rules leave them alone.",
)
"""Gives a command `mark`."""
