"""`vmstate-proxy completion`."""

import click
from click.shell_completion import get_completion_class

from proxy.cli.options.given_once import OnceEach

_PROGRAM = "vmstate-proxy"
_VARIABLE = "_VMSTATE_PROXY_COMPLETE"


@click.command("completion", cls=OnceEach, short_help="Print what makes a shell complete commands and options.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, *, shell: str) -> None:
    """Print what makes SHELL complete commands and options of vmstate-proxy.

    \b
    Examples:
      eval "$(vmstate-proxy completion bash)"
      vmstate-proxy completion fish > ~/.config/fish/completions/vmstate-proxy.fish
    """
    completion = get_completion_class(shell)
    assert completion is not None  # the choices are click's own
    click.echo(completion(context.find_root().command, {}, _PROGRAM, _VARIABLE).source())
