"""`vmstate-proxy policy`."""

import importlib.resources
import os
from pathlib import Path

import click

from proxy.captures.complete_file import complete_file
from proxy.cli.lines import echo
from proxy.cli.options.given_once import OnceEachGroup
from proxy.errors import ConfigError
from proxy.stdio import STDIO


@click.group("policy", cls=OnceEachGroup, short_help="Write a policy, or have one explained.")
def command() -> None:
    """Write policies, and have them explained: which processors are close enough, and what may change.

    \b
    Example:
      vmstate-proxy policy init policy.toml
      vmstate-proxy policy check policy.toml
    """


@command.command("init", short_help="Write an example policy.")
@click.argument("output", metavar="[FILE]", default=STDIO)
def init(*, output: str) -> None:
    """Write a commented example policy to FILE, or to standard output.

    A FILE that is there already is left alone.

    \b
    Example:
      vmstate-proxy policy init policy.toml
    """
    example = importlib.resources.files("proxy.policy").joinpath("policy_example.toml").read_bytes()
    if output != STDIO and os.path.lexists(output):
        raise ConfigError(f"{output}: it is there already; remove it first, or choose another name")
    with complete_file(output) as file:
        file.write(example)


@command.command("check", short_help="Say in words what a policy allows.")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
def check(*, path: Path) -> None:
    """Check the policy in FILE, and say in words what it means.

    Exit code 2, and the line and the key, if it is wrong.

    \b
    Example:
      vmstate-proxy policy check policy.toml
    """
    from proxy.policy.policy_file import load_policy
    from proxy.policy.policy_words import in_words

    for line in in_words(load_policy(path)):
        echo(line, indent=4)
