"""Manual pages and shell completion come from the commands themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from proxy.cli import cli
from proxy.cli.manual import page
from tests.proxy.helpers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None
            yield from contexts(click.Context(command, info_name=name, parent=context))


CONTEXTS = {context.command_path: context for context in contexts(click.Context(cli, info_name="vmstate-proxy"))}


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("path", CONTEXTS)
def test_a_page_has_all_that_the_help_has(path: str) -> None:
    context = CONTEXTS[path]
    lines = list(page(context))
    heads = [line.removeprefix(".SH ") for line in lines if line.startswith(".SH ")]
    assert heads[:3] == ["NAME", "SYNOPSIS", "DESCRIPTION"]
    text = "\n".join(lines).replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\")
    for option in context.command.params:
        if isinstance(option, click.Option):
            assert all(name in text for name in option.opts)
    assert "\b" not in text
    assert "vmstate-proxy" in text.partition("DESCRIPTION")[2], "a page needs an example"


@pytest.mark.parametrize("path", CONTEXTS)
def test_no_line_is_taken_for_a_macro(path: str) -> None:
    known = (".TH ", ".SH ", ".PP", ".nf", ".fi", ".TP", ".B ", ".BR ")
    for line in page(CONTEXTS[path]):
        assert not line.startswith("'")
        assert not line.startswith(".") or line.startswith(known)


def test_pages_are_written(tmp_path: Path) -> None:
    done = run("manual", tmp_path / "man1")
    assert done.returncode == 0
    names = {path.name for path in (tmp_path / "man1").iterdir()}
    assert names == {f"{path.replace(' ', '-')}.1" for path in CONTEXTS}
    (tmp_path / "file").touch()
    done = run("manual", tmp_path / "file" / "man1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Not a directory" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_VMSTATE_PROXY_COMPLETE" in done.stdout


def test_the_program_completes() -> None:
    environment = {"_VMSTATE_PROXY_COMPLETE": "bash_complete", "COMP_WORDS": "vmstate-proxy ch", "COMP_CWORD": "1"}
    program = os.path.join(os.path.dirname(sys.executable), "vmstate-proxy")
    done = subprocess.run(
        [program], env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "plain,check\n"
