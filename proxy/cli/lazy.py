"""A click group that imports a command's module when the command is called, not before."""

import gc
import importlib
from typing import Any

import click

from proxy.cli.options.given_once import OnceEachGroup


class LazyGroup(OnceEachGroup):
    """A group that also has commands in modules of their own, each as `command`."""

    def __init__(self, *args: Any, commands_in: dict[str, str], **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._commands_in = commands_in

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which they were given."""
        return [*super().list_commands(ctx), *self._commands_in]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return the command."""
        module = self._commands_in.get(cmd_name)
        if module is None:
            return super().get_command(ctx, cmd_name)
        gc.disable()  # what a module makes while it is loaded stays
        try:
            command: click.Command = importlib.import_module(module).command
        finally:
            gc.enable()
        return command
