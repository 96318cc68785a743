"""Hosts that serve one test after the other: a boot costs seconds, a guest on a host that is up much less."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import trio

from tests.lab.host import emulator_of, started_host
from tests.lab.images import host_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.host import Host

_MEMORY_MIB = 1024


class Lab:
    """The hosts of a test session, by suite and processor. Get it from `running_lab`, or as the fixture `lab`.

        source, destination = await lab.hosts(A57_R1P0, A57_R1P3, suite="trixie")
        async with source.guest(image=counter_guest()) as guest, destination.guest(incoming=...) as arrived:
            await guest.migrate(...)

    Guests end with their `async with`, so a test finds a host as empty as after its boot. Files in it may be left over.
    A host that died is replaced for the next test.
    """

    def __init__(self) -> None:
        self._hosts: dict[tuple[str, str], Host] = {}
        self._stack = ExitStack()

    async def host(self, *, cpu: str, suite: str = "bookworm") -> Host:
        """Return a host that is up, booted now if there is none yet.

        Args:
            cpu: QEMU's -cpu, such as "cortex-a57,midr=0x411fd073".
            suite: one of `tests.lab.images.SUITES`.

        Raises:
            ImageError: the image cannot be built.
            HostError: the host does not boot.
        """
        [host] = await self.hosts(cpu, suite=suite)
        return host

    async def hosts(self, *cpus: str, suite: str = "bookworm") -> list[Host]:
        """Return a host for each processor; those that have to boot do so side by side."""
        image = await trio.to_thread.run_sync(host_image, suite)
        hosts = []
        for cpu in cpus:
            host = self._hosts.get((suite, cpu))
            if host is None or not host.alive():
                host = self._stack.enter_context(started_host(image, cpu, _MEMORY_MIB, await emulator_of(cpu)))
                self._hosts[suite, cpu] = host
            hosts.append(host)
        for host in hosts:
            await host.wait_ready()
        return hosts

    def close(self) -> None:
        """End all hosts."""
        self._hosts.clear()
        self._stack.close()


def running_lab() -> Iterator[Lab]:
    """Provide a Lab; the body of a session-scoped fixture. It is synchronous: a trio run ends with each test."""
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()
