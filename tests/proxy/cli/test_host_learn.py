"""`host learn`: a profile out of a stream."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1
from tests.captures import CAPTURES
from tests.proxy.cli.command_line import SMP2, Result
from tests.proxy.helpers import NAMES, R3, capture, short, with_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_learning(run: Callable[..., Result], tmp_path: Path, host: Path) -> None:
    text = host.read_text()
    assert 'MIDR_EL1 = "0x411fd073"' in text
    assert 'description = "learned from kvm-trixie-a57r3.xz"' in text
    run("host", "learn", CAPTURES / "kvm-trixie-a57r3.xz", "-o", tmp_path / "x", "--description", 'rack "7"')
    assert r'description = "rack \"7\""' in (tmp_path / "x").read_text()


def test_unlike_processors_cannot_be_learned(run: Callable[..., Result], tmp_path: Path) -> None:
    stream = with_value(short(SMP2), MIDR_EL1, R3, 1)
    result = run("host", "learn", "-", "-o", tmp_path / "out", stdin=stream)
    assert result.code == 4
    assert "MIDR_EL1 differs" in result.error()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_stream_passes_the_host_it_was_learned_from(
    run: Callable[..., Result], name: str, tmp_path: Path
) -> None:
    assert run("host", "learn", CAPTURES / f"{name}.xz", "-o", tmp_path / "host").code == 0
    result = run("rewrite", CAPTURES / f"{name}.xz", "-", "--host", tmp_path / "host")
    assert result.code == 0
    assert result.out == capture(name)
