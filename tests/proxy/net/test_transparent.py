"""The original destination, where nothing was redirected; tests/live/test_transparent.py has real redirections."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from proxy.errors import ConfigError, RefusedError
from proxy.net.address import TcpAddress, parse_address
from proxy.net.binding import bound
from proxy.net.connection import SocketConnection
from proxy.net.redirection import MIGRATION_PORTS, PortRange
from proxy.net.route import Route
from proxy.net.transparent import Redirection

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def pair(host: str = "127.0.0.1", *, only_six: bool = True) -> Iterator[tuple[SocketConnection, SocketConnection, int]]:
    """Connect over TCP; return the accepted end, the other one, and the port that was listened on."""
    family = socket.AF_INET6 if host == "::" else socket.AF_INET
    with socket.socket(family) as listening:
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_six)
        listening.bind((host, 0))
        listening.listen()
        port = listening.getsockname()[1]
        near = socket.create_connection(("::1" if only_six and host == "::" else "127.0.0.1", port))
        far, _ = listening.accept()
    accepted = SocketConnection("source", trio.socket.from_stdlib_socket(far))
    dialled = SocketConnection("destination", trio.socket.from_stdlib_socket(near))
    try:
        yield accepted, dialled, port
    finally:
        accepted.close()
        dialled.close()


@pytest.mark.parametrize(("host", "only_six"), [("127.0.0.1", True), ("::", True), ("::", False)])
async def test_without_translation_the_own_address_is_the_destination(host: str, only_six: bool) -> None:
    with pair(host, only_six=only_six) as (accepted, _, port):
        expected = TcpAddress("::1" if host == "::" and only_six else "127.0.0.1", port)
        assert Route(Redirection(PortRange(port, port))).destination_of(accepted) == expected


async def test_what_was_not_redirected_is_refused() -> None:
    with pair() as (accepted, _, port), pytest.raises(RefusedError, match="it was not redirected"):
        Redirection(PortRange(port + 1, port + 1)).destination_of(accepted)


async def test_what_is_no_tcp_is_refused() -> None:
    one, other = socket.socketpair()
    with other:
        connection = SocketConnection("source", trio.socket.from_stdlib_socket(one))
        with pytest.raises(RefusedError, match="no TCP connection"):
            Redirection(MIGRATION_PORTS).destination_of(connection)
        connection.close()


async def test_the_route_s_own_connection_is_refused_while_it_is_open() -> None:
    with pair() as (accepted, dialled, port):
        redirection = Redirection(PortRange(port, port))
        redirection.check_not_own(accepted)
        redirection.add_dialled(dialled)
        with pytest.raises(RefusedError, match=r"the proxy's own.*mark 0x766d7072"):
            redirection.check_not_own(accepted)
        dialled.close()
        redirection.check_not_own(accepted)


async def test_another_connection_from_the_same_port_is_not_the_own() -> None:
    """A port may be the near end of several connections, if their far ends differ."""
    with pair() as (accepted, dialled, port), pair() as (other, _, other_port):
        redirection = Redirection(PortRange(min(port, other_port), max(port, other_port)))
        redirection.add_dialled(dialled)
        redirection.check_not_own(other)
        assert accepted.host == other.host


def test_the_listening_port_may_not_be_one_of_the_destinations() -> None:
    with bound([parse_address("tcp:0.0.0.0:0")]) as [one]:
        assert one.socket is not None
        port = one.socket.getsockname()[1]
        with pytest.raises(ConfigError, match="are those of the destinations"):
            Redirection(PortRange(port, port)).prepare([one])


async def test_at_one_address_it_may_be_and_what_goes_there_is_the_proxys_own() -> None:
    with bound([parse_address("tcp:127.0.0.9:0")]) as [one]:
        assert one.socket is not None
        port = one.socket.getsockname()[1]
        redirection = Redirection(PortRange(port, port))
        redirection.prepare([one])
        client = socket.create_connection(("127.0.0.9", port))
        accepted, _ = one.socket.accept()
        connection = SocketConnection("source", trio.socket.from_stdlib_socket(accepted))
        with pytest.raises(RefusedError, match="it was not redirected, but made to the proxy itself"):
            redirection.destination_of(connection)
        connection.close()
        client.close()


def test_only_tcp_is_listened_on() -> None:
    one, other = socket.socketpair()
    with (
        one,
        other,
        bound([parse_address(f"fd:{one.fileno()}")]) as bounds,
        pytest.raises(ConfigError, match="takes TCP connections only"),
    ):
        Redirection(MIGRATION_PORTS).prepare(bounds)
