"""Where the guests of a campaign run: on this machine, emulated, or on the KVM of two emulated arm64 hosts."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from tests.kvm.helpers import learn as learn_on_kvm
from tests.lab.guest import counter_guest
from tests.lab.host import A57_R1P0, A57_R1P3
from tests.lab.vm import Vm, running_vm
from tests.live.helpers import A57_TO_A72, learn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.lab.host import Host
    from tests.lab.pool import Lab

PAGES = 2500
"""Pages of 4 KiB that a guest has written; more than sockets hold."""


KVM_SUITE = "trixie"
"""The Debian release of the hosts: QEMU 10.0 on Linux 6.12."""

_KVM_PAGES = 500


class Stage(Protocol):
    """Starts QEMUs.

    Attributes:
        options: What the proxy is told of the destination.
        patience: How much longer all takes than on this machine.
    """

    @property
    def options(self) -> tuple[str, ...]: ...

    @property
    def patience(self) -> float: ...

    def source(self, *, refused: bool) -> AbstractAsyncContextManager[Vm]:
        """Start a guest, on a processor that the proxy lets nobody have, if `refused`."""

    def destination(self, *, held: bool) -> AbstractAsyncContextManager[Vm]:
        """Start a QEMU that can be told to listen; with -S, if `held`."""


class Emulated:
    """QEMUs with TCG: from a cortex-a57 to a cortex-a72."""

    patience = 1.0

    def __init__(self, profile: str, qemu: str | None, *, direct: bool) -> None:
        self._qemu = qemu
        self._there = "cortex-a57" if direct else "cortex-a72"
        self.options = ("--host", profile, "--allow-midr", "none", *A57_TO_A72)

    @classmethod
    async def open(cls, directory: Path, qemu: str | None, *, direct: bool) -> Emulated:
        """Learn the destination's profile.

        Args:
            directory: Keeps the profile.
            qemu: A Debian release, one of `tests.lab.qemus.QEMUS`, whose QEMU to run; None for the installed one.
            direct: Whether there is no proxy, so that both ends need one processor.
        """
        return cls(await learn(directory, "cortex-a72", qemu=qemu), qemu, direct=direct)

    @asynccontextmanager
    async def source(self, *, refused: bool) -> AsyncIterator[Vm]:
        cpu = "max" if refused else "cortex-a57"
        async with running_vm(name="source", qemu=self._qemu, cpu=cpu, guest=counter_guest(touch_pages=PAGES)) as vm:
            yield vm

    @asynccontextmanager
    async def destination(self, *, held: bool) -> AsyncIterator[Vm]:
        async with running_vm(
            name="destination", qemu=self._qemu, cpu=self._there, incoming="defer", paused=held
        ) as vm:
            yield vm


class OnKvm:
    """QEMUs on the KVM of two emulated hosts: from a Cortex-A57 r1p0 to an r1p3, which refuses the MIDR of that."""

    patience = 3.0

    def __init__(self, source: Host, destination: Host, profile: str) -> None:
        self._source, self._destination = source, destination
        self.options = ("--host", profile, "--allow-midr", "0x411fd070")

    @classmethod
    async def open(cls, lab: Lab, directory: Path) -> OnKvm:
        """Boot the hosts, and learn the destination's profile."""
        source, destination = await lab.hosts(A57_R1P0, A57_R1P3, suite=KVM_SUITE)
        return cls(source, destination, await learn_on_kvm(directory, destination))

    @asynccontextmanager
    async def source(self, *, refused: bool) -> AsyncIterator[Vm]:
        assert not refused
        async with self._source.guest(name="source", image=counter_guest(touch_pages=_KVM_PAGES)) as vm:
            yield vm

    @asynccontextmanager
    async def destination(self, *, held: bool) -> AsyncIterator[Vm]:
        async with self._destination.guest(name="destination", incoming="defer", paused=held) as vm:
            yield vm
