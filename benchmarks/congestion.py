"""The congestion control that new TCP connections of this machine get, changed for a while."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

USUAL = "cubic"
"""Linux's default, which does not pace."""

_SETTING = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def congestion_control() -> str:
    """Return the name of the system's."""
    return _SETTING.read_text().strip()


def can_be(name: str) -> bool:
    """Tell whether this process may choose one for the system, and there is such a one."""
    return os.access(_SETTING, os.W_OK) and name in _AVAILABLE.read_text().split()


@contextmanager
def changed_to(name: str) -> Iterator[None]:
    """Have the system use another one, and its own again afterwards; raises OSError."""
    before = congestion_control()
    _SETTING.write_text(name)
    try:
        yield
    finally:
        _SETTING.write_text(before)
