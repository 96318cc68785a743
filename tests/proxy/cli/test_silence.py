"""Nothing is dropped or overwritten in silence: the first of an option given twice, a file that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.captures import CAPTURES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.proxy.cli.command_line import Result

HOST = str(CAPTURES / "hosts" / "trixie-n1.toml")
STREAM = str(CAPTURES / "kvm-trixie-n1.xz")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("check", STREAM, "--host", HOST, "--host", HOST), "--host"),
        (("run", "--listen", "tcp::1", "--connect", "tcp:a:1", "--connect", "tcp:b:1", "--host", HOST), "--connect"),
        (("host", "learn", STREAM, "-o", "one", "--output", "two"), "--output"),
    ],
)
def test_twice_is_once_too_often(run: Callable[..., Result], arguments: tuple[str, ...], option: str) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert f"{option} is given 2 times, and takes one value" in result.err


def test_what_is_made_for_more_and_flags_may_be(run: Callable[..., Result]) -> None:
    more = ("--allow-midr", "0x411fd070", "--allow-midr", "0x410fd083", "--json", "--json")
    assert run("check", STREAM, "--host", HOST, *more).code == 0


@pytest.mark.parametrize(
    "arguments",
    [("host", "learn", STREAM, "-o"), ("record", "--listen", "tcp:256.256.256.256:1")],
    ids=["learn", "record"],
)
def test_what_is_there_is_not_overwritten_in_silence(
    run: Callable[..., Result], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    out.write_text("of use")
    result = run(*arguments, out)
    assert (result.code, out.read_text()) == (2, "of use")
    assert "there is such a file already; --force overwrites it" in result.err
    assert "there is such a file" not in run(*arguments, out, "--force").err
    assert "there is such a file" not in run(*arguments, tmp_path / "other").err
