"""A command whose options may also stand in a file, or in the environment.

What is given on the command line counts before the environment, and that before the file.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from proxy.cli.options.given_once import OnceEach
from proxy.errors import ConfigError
from proxy.settings.toml_file import read_toml, where_in

if TYPE_CHECKING:
    from collections.abc import Collection

PREFIX: Final = "VMSTATE_PROXY"
"""Environment variables are called so: VMSTATE_PROXY_ALLOW_MIDR for --allow-midr."""

_ARGUMENTS: Final = "proxy.cli.arguments"
_PLACES: Final = "proxy.cli.places"


class Configured(OnceEach):
    """A command with an option --config FILE: a TOML file that has its other options by their names.

    Its parameters are called as its options.
    """

    def __init__(self, *args: Any, shares_with: str | None = None, **kwargs: Any) -> None:  # noqa: ANN401 - click's
        """Make it.

        Args:
            *args: click's.
            shares_with: The module of another command whose file it reads, too: that one's options mean nothing here.
            **kwargs: click's.
        """
        super().__init__(*args, **kwargs)
        self._shares_with = shares_with
        self.context_settings = {**self.context_settings, "auto_envvar_prefix": PREFIX}
        self.params.append(
            click.Option(
                ["--config"],
                metavar="FILE",
                type=click.Path(path_type=Path),
                is_eager=True,
                expose_value=False,
                callback=self._read,
                help=f'A TOML file with these options by their names, as allow-midr = ["0x411fd070"]. The command '
                f"line counts before the environment ({PREFIX}_ALLOW_MIDR), and that before the file.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and name the place in the file of what is wrong there."""
        ctx.meta[_ARGUMENTS] = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            name = None if error.param is None else error.param.name
            place = None if name is None else ctx.meta.get(_PLACES, {}).get(name)
            if place is None or name is None or ctx.get_parameter_source(name) is not ParameterSource.DEFAULT_MAP:
                raise
            raise ConfigError(f"{place}: {error.message}") from error

    def again(self, context: click.Context, obj: object) -> Any:  # noqa: ANN401 - what the callback returns
        """Run the command once more on the arguments of a context, with the file and all others read anew.

        Args:
            context: Of the first run.
            obj: Tells the command that it is asked again.
        """
        with self.make_context(
            context.info_name, list(context.meta[_ARGUMENTS]), parent=context.parent, obj=obj
        ) as new:
            return self.invoke(new)

    def options_in_files(self) -> dict[str, click.Option]:
        """Return the options that may stand in a file, by their names there."""
        return {_option_name(one): one for one in self.params if isinstance(one, click.Option) and one.expose_value}

    def _options_of_others(self) -> "Collection[str]":
        if self._shares_with is None:
            return ()
        other: Configured = importlib.import_module(self._shares_with).command
        return other.options_in_files()

    def _read(self, ctx: click.Context, _option: click.Parameter, path: Path | None) -> None:
        if path is None:
            return
        found, text = read_toml(path)
        known = self.options_in_files()
        others = self._options_of_others()
        defaults: dict[str, object] = {}
        places: dict[str, str] = {}
        for key, value in found.items():
            where = where_in(path, text, (key,))
            option = known.get(key)
            if option is None and key in others:
                continue
            if option is None:
                raise ConfigError(f"{where}: there is no option --{key}; '{ctx.command_path} --help' has all")
            assert option.name is not None
            defaults[option.name] = _checked(option, value, where)
            places[option.name] = where
        ctx.default_map = defaults
        ctx.meta[_PLACES] = places


def _option_name(option: click.Option) -> str:
    return max(option.opts, key=len).lstrip("-")


def _checked(option: click.Option, value: object, where: str) -> object:
    """Return a value as click takes it for an option."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: it has to be true or false")
        return value
    if isinstance(value, list) and option.multiple:
        return [_plain(one, where) for one in value]
    plain = _plain(value, where)
    return [plain] if option.multiple else plain


def _plain(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(
            f"{where}: it has to be a text in quotes or a number, or where it may be given several times, "
            "a list of these"
        )
    return str(value)
