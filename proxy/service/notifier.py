"""Telling systemd how the service is. Source: sd_notify(3), sd_watchdog_enabled(3)."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from proxy.live.watching import Watcher
from proxy.report.words import counted

if TYPE_CHECKING:
    from proxy.live.session import Session
    from proxy.live.under_way import UnderWay
    from proxy.report.report import Report


class Notifier(Watcher):
    """Says that the service is ready, reloads and stops, how many migrations are under way, and that it is alive."""

    def __init__(self, address: str, patience: float | None = None) -> None:
        """Make one; see `notifier`.

        Args:
            address: The manager's datagram socket: a path, or `@` and an abstract name.
            patience: Seconds in which the manager wants to hear something; None when it does not care.
        """
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._patience = patience
        self._under_way: UnderWay | None = None

    def watch(self, under_way: "UnderWay") -> None:
        """Learn of the migrations under way."""
        self._under_way = under_way

    async def run(self) -> None:
        """Say that the service is ready, and from then on that its event loop goes on."""
        self._tell("READY=1", self._status)
        while True:
            await trio.sleep(float("inf") if self._patience is None else self._patience / 3)
            self._tell("WATCHDOG=1")

    def begins(self, session: "Session") -> None:
        """Say how many are under way."""
        self._tell(self._status)

    def ends(self, session: "Session", report: "Report") -> None:
        """Say how many are under way."""
        self._tell(self._status)

    def reloads(self) -> None:
        """Say that what the operator decides is read anew."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self, *, well: bool) -> None:
        """Say that the service is ready again; with the old settings, where the new ones are wrong."""
        status = self._status if well else f"{self._status}; the settings are wrong, the old ones count, see the log"
        self._tell("READY=1", status)

    def drains(self) -> None:
        """Say that it is about to stop."""
        self._tell("STOPPING=1", self._status)

    @property
    def _status(self) -> str:
        number = 0 if self._under_way is None else len(self._under_way)
        draining = self._under_way is not None and self._under_way.draining
        return f"STATUS={counted(number, 'migration')} under way{', no more are taken' if draining else ''}"

    def _tell(self, *lines: str) -> None:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), self._address)


def notifier(environment: Mapping[str, str]) -> Notifier | None:
    """Return what tells the service manager that started this; None when none did."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return Notifier(address, int(microseconds) / 1e6 if mine and microseconds.isdecimal() else None)
