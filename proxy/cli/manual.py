"""`vmstate-proxy manual`: manual pages, made from the commands' own help."""

import inspect
import os
from collections.abc import Iterator

import click

import proxy
from proxy.captures.complete_file import complete_file
from proxy.cli.options.given_once import OnceEach
from proxy.errors import ProxyError

_AS_IT_IS = "\b"
"""With this, click's help begins a paragraph whose lines stay as they are."""


@click.command("manual", cls=OnceEach, short_help="Write the manual pages of all commands.")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.pass_context
def command(context: click.Context, *, folder: str) -> None:
    """Write the manual pages of all commands into DIR, as vmstate-proxy.1, vmstate-proxy-run.1, ...

    \b
    Examples:
      vmstate-proxy manual ~/.local/share/man/man1
      man vmstate-proxy-run
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ProxyError(f"{folder}: {error.strerror}") from error
    for page_context in _contexts(click.Context(context.find_root().command, info_name="vmstate-proxy")):
        name = page_context.command_path.replace(" ", "-")
        with complete_file(os.path.join(folder, f"{name}.1")) as file:
            file.write("".join(f"{line}\n" for line in page(page_context)).encode())
        click.echo(f"vmstate-proxy: {os.path.join(folder, name)}.1", err=True)


def page(context: click.Context) -> Iterator[str]:
    """Yield a command's manual page, in roff's man macros."""
    name = context.command_path.replace(" ", "-")
    command = context.command
    help_text = inspect.cleandoc(command.help or "")
    first, _, _ = help_text.partition("\n\n")
    yield f'.TH {name.upper()} 1 "" "vmstate-proxy {proxy.__version__}"'
    yield ".SH NAME"
    yield f"{_text(name)} \\- {_text(' '.join(first.split()).rstrip('.:'))}"
    yield ".SH SYNOPSIS"
    yield f".B {_text(context.command_path)}"
    yield _text(" ".join(command.collect_usage_pieces(context)))
    yield ".SH DESCRIPTION"
    yield from _paragraphs(help_text)
    records = [option.get_help_record(context) for option in command.get_params(context)]
    if any(records):
        yield ".SH OPTIONS"
        for record in filter(None, records):
            yield ".TP"
            yield f".B {_text(record[0])}"
            yield _text(record[1])
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for child in _children(context):
            yield ".TP"
            yield f".BR {_text(child.command_path.replace(' ', '-'))} (1)"
            yield _text(child.command.get_short_help_str(200))
    if command.epilog:
        yield ".SH EXIT STATUS"
        yield from _paragraphs(inspect.cleandoc(command.epilog))


def _contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    for child in _children(context):
        yield from _contexts(child)


def _children(context: click.Context) -> Iterator[click.Context]:
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            child = context.command.get_command(context, name)
            if child is not None and not child.hidden:
                yield click.Context(child, info_name=name, parent=context)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield ".PP"
        if paragraph.lstrip().startswith(_AS_IT_IS):
            yield ".nf"
            yield from (_text(line) for line in paragraph.replace(_AS_IT_IS, "").strip("\n").splitlines())
            yield ".fi"
        else:
            yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Escape what roff would take for its own."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith((".", "\\(aq")) else escaped
