"""An option that takes one value is not given twice: the first would be dropped in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.captures import CAPTURES

if TYPE_CHECKING:
    from collections.abc import Callable

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
