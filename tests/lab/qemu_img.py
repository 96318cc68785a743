"""qemu-img, for the images of guests."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def qemu_img(*arguments: object) -> str:
    """Run it; return what it says.

    Raises:
        subprocess.CalledProcessError: it failed; `check` does where it finds so much as a leak.
    """
    done = subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


def assert_clean(path: Path) -> None:
    """See that qemu-img finds nothing wrong with an image."""
    assert "No errors were found" in qemu_img("check", path)
