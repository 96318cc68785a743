"""The units: systemd understands them, and they are shut tight."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "ops" / "systemd"
UNITS = ("vmstate-proxy.service", "vmstate-proxy-rules.service")


def analyze(*arguments: str | Path) -> str:
    done = subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_understands_them(tmp_path: Path) -> None:
    """With the program that is here in place of the one that the package installs."""
    here = Path(sys.executable).with_name("vmstate-proxy")
    for name in UNITS:
        text = (SYSTEMD / name).read_text()
        assert "/usr/bin/vmstate-proxy" in text
        (tmp_path / name).write_text(text.replace("/usr/bin/vmstate-proxy", str(here)))
    assert analyze("verify", "--man=no", *(tmp_path / name for name in UNITS)) == ""


@pytest.mark.parametrize("name", UNITS)
def test_they_are_shut_tight(name: str) -> None:
    match = re.search(r"exposure level for \S+: ([\d.]+)", analyze("security", "--offline=yes", SYSTEMD / name))
    assert match
    assert float(match[1]) < 2.0
