"""The command line, and what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.proxy.helpers import R0, R3, ROOT

if TYPE_CHECKING:
    from pathlib import Path

SMP2 = "kvm-trixie-a57r0-smp2"
ALLOWED = ("--midr", hex(R3), "--allow-midr", hex(R0))


@dataclass(frozen=True)
class Result:
    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.out)

    def error(self) -> str:
        """Return the only line on standard error."""
        (line,) = self.err.splitlines()
        assert line.startswith("vmstate-proxy: ")
        return line


def spawn(*args: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:  # noqa: ANN401
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "proxy", *map(str, args)], cwd=ROOT, stderr=subprocess.PIPE, timeout=20, **kwargs
    )
