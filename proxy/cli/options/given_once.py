"""Commands that refuse an option that is given twice and takes one value; click would take the last in silence."""

from typing import Any

import click


class OnceEach(click.Command):
    """A command each of whose options is given once, unless it is made for more."""

    def make_parser(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click is about to make its type private
        """Make the parser, which also looks for what is given twice."""
        parser = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:  # noqa: ANN401
            options, rest, order = parse(args)
            for one in order:
                single = isinstance(one, click.Option) and not (one.multiple or one.count or one.is_flag)
                if single and order.count(one) > 1:
                    raise click.UsageError(
                        f"{one.opts[-1]} is given {order.count(one)} times, and takes one value", ctx
                    )
            return options, rest, order

        parser.parse_args = parse_args  # type: ignore[method-assign]
        return parser


class OnceEachGroup(click.Group):
    """A group of such commands."""

    command_class = OnceEach
