"""The fixture that tests on real KVM share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.pool import Lab, running_lab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Emulated arm64 hosts with /dev/kvm, booted when first asked for."""
    yield from running_lab()
