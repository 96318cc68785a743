"""The help of every command, and the version."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
import pytest

from proxy.cli import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.proxy.cli.command_line import Result


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_help_teaches_by_example(run: Callable[..., Result], path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.code == 0
    text = result.out.decode()
    assert "Example" in text or not path
    assert "vmstate-proxy " + " ".join(path) in text.split("Usage", 1)[1].split("\n", 1)[1]


def test_the_help_lists_the_exit_codes(run: Callable[..., Result]) -> None:
    text = run("--help").out.decode()
    assert all(re.search(rf"^\s+{code}  \w", text, re.MULTILINE) for code in range(5))


def test_the_risk_of_no_return_path_is_told(run: Callable[..., Result]) -> None:
    text = run("run", "--help").out.decode()
    assert re.search(r"--allow-no-return-path.*RISK", text, re.DOTALL)


def test_the_version(run: Callable[..., Result]) -> None:
    assert re.fullmatch(rb"vmstate-proxy, version \d+\.\d+\.\d+\n", run("--version").out)


def test_no_command_is_2(run: Callable[..., Result]) -> None:
    assert run().code == 2
