"""The command line in this process, and files for it."""

from __future__ import annotations

import gc
import io
import sys
from typing import TYPE_CHECKING

import pytest

from proxy.cli import main
from tests.captures import CAPTURES
from tests.proxy.cli.command_line import SMP2, Result
from tests.proxy.helpers import capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Result]:
    """Run the command line in this process; any exception but SystemExit is a traceback for its user."""

    def run(*args: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["vmstate-proxy", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as caught:
            main()
        sys.stdout.flush()
        if "--report" in args:
            gc.collect()  # what was left open is this test's, not another's
        out, err = capfdbinary.readouterr()
        code = caught.value.code
        assert code is None or isinstance(code, int)
        return Result(code or 0, out, err.decode())

    return run


@pytest.fixture
def host(run: Callable[..., Result], tmp_path: Path) -> Path:
    """The profile of the r3 host, learned by the command."""
    path = tmp_path / "r3.toml"
    assert run("host", "learn", CAPTURES / "kvm-trixie-a57r3.xz", "-o", path).code == 0
    return path


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    path = tmp_path / "in.stream"
    path.write_bytes(capture(SMP2))
    return path
