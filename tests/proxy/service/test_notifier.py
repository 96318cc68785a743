"""What systemd is told."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, cast

import pytest
import trio

from proxy.live.under_way import UnderWay
from proxy.service.notifier import Notifier, notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from proxy.live.session import Session
    from proxy.report.report import Report


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A manager's socket, and its address."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(5)
        yield sock, path


def told(manager: tuple[socket.socket, str]) -> list[str]:
    return manager[0].recv(4096).decode().splitlines()


class _Session:
    def last_call(self) -> None:
        """Wait for no recovery."""


def test_what_happens_is_told(manager: tuple[socket.socket, str]) -> None:
    it, under_way, session = Notifier(manager[1]), UnderWay(), cast("Session", _Session())
    it.watch(under_way)
    under_way.begin(session)
    it.begins(session)
    assert told(manager) == ["STATUS=1 migration under way"]
    it.reloads()
    reloading, monotonic = told(manager)
    assert reloading == "RELOADING=1"
    assert monotonic.startswith("MONOTONIC_USEC=")
    it.reloaded(well=False)
    ready, status = told(manager)
    assert ready == "READY=1"
    assert "the settings are wrong" in status
    under_way.drain()
    it.drains()
    assert told(manager) == ["STOPPING=1", "STATUS=1 migration under way, no more are taken"]
    under_way.end(session)
    it.ends(session, cast("Report", None))
    assert told(manager) == ["STATUS=0 migrations under way, no more are taken"]


async def test_it_is_ready_and_alive(manager: tuple[socket.socket, str]) -> None:
    it = notifier({"NOTIFY_SOCKET": manager[1], "WATCHDOG_USEC": "30000", "WATCHDOG_PID": str(os.getpid())})
    assert it is not None
    with trio.move_on_after(0.1):
        await it.run()
    assert told(manager) == ["READY=1", "STATUS=0 migrations under way"]
    assert told(manager) == ["WATCHDOG=1"]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_manager_nothing_is_told(environment: dict[str, str]) -> None:
    assert notifier(environment) is None


def test_a_manager_that_is_gone_does_no_harm(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "gone")).drains()
    Notifier("@vmstate-proxy-gone").drains()


def test_another_process_watchdog_is_not_ours(manager: tuple[socket.socket, str]) -> None:
    it = notifier({"NOTIFY_SOCKET": manager[1], "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
    assert it is not None
    assert it._patience is None
