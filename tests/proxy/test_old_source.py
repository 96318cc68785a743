"""Which sources may be older than QEMU 6.1, by the machine types of their guests."""

from __future__ import annotations

import pytest

from proxy.old_source import may_be_old


@pytest.mark.parametrize("machine", ["virt-2.7", "virt-5.2", "virt-6.0", "pc-q35-9.0", "virt-rhel8.6.0", "", None])
def test_what_an_older_qemu_may_have(machine: str | None) -> None:
    assert may_be_old(machine)


@pytest.mark.parametrize("machine", ["virt-6.1", "virt-7.2", "virt-10.0"])
def test_what_no_older_qemu_has(machine: str) -> None:
    assert not may_be_old(machine)
