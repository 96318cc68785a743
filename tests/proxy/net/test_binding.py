"""Binding: what addresses stand for, and what is left of them afterwards."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from proxy.errors import ProxyError
from proxy.net.address import TcpAddress, parse_address
from proxy.net.binding import bound

if TYPE_CHECKING:
    from pathlib import Path


def port_of(sock: socket.socket | None) -> int:
    assert sock is not None
    return int(sock.getsockname()[1])


def test_no_host_is_the_loopback() -> None:
    with bound([parse_address("tcp::0")]) as [one]:
        port = port_of(one.socket)
        assert one.name == f"tcp:127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port))


def test_ipv6_is_named_in_brackets() -> None:
    with bound([parse_address("tcp:[::1]:0")]) as [one]:
        assert one.name == f"tcp:[::1]:{port_of(one.socket)}"
        assert one.listens


def test_an_address_in_use_is_an_error_and_the_others_are_let_go() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port_of(free)
        free.close()
        with (
            pytest.raises(ProxyError, match=r"cannot listen on tcp:127\.0\.0\.1:\d+: Address already in use"),
            bound([TcpAddress("127.0.0.1", port), TcpAddress("127.0.0.1", port_of(taken))]),
        ):
            raise AssertionError
    with bound([TcpAddress("127.0.0.1", port)]):
        pass


@pytest.mark.parametrize("host", ["no..name", "x" * 64, "192.0.2.1", "no_such_name.invalid"])
def test_an_address_that_is_not_here_is_an_error(host: str) -> None:
    with pytest.raises(ProxyError, match="cannot listen on tcp:"), bound([TcpAddress(host, 0)]):
        raise AssertionError


def test_a_socket_s_file_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with bound([parse_address(f"unix:{path}")]) as [one]:
        assert path.is_socket()
        one.close()
        path.write_text("another one's by now")
    assert path.exists()


def test_a_file_that_a_killed_one_has_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    with bound([parse_address(f"unix:{path}")]) as [one]:
        assert one.name == f"unix:{path}"
    assert not path.exists()


@pytest.mark.parametrize("backlog", [0, 5])
def test_a_file_on_which_someone_listens_stays(tmp_path: Path, backlog: int) -> None:
    """Also where the other one has as many in waiting as it takes."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as waiting:
        alive.bind(str(path))
        alive.listen(backlog)
        waiting.connect(str(path))
        with pytest.raises(ProxyError, match="Address already in use"), bound([parse_address(f"unix:{path}")]):
            raise AssertionError
    assert path.exists()


def test_a_connected_socket_is_the_only_source() -> None:
    one, other = socket.socketpair()
    with one, other, bound([parse_address(f"fd:{one.fileno()}")]) as [found]:
        assert (found.name, found.listens) == (f"fd:{one.fileno()}", False)
        assert found.socket is not None
        assert found.socket.fileno() != one.fileno()


def test_what_is_no_socket_is_an_error() -> None:
    reader, writer = os.pipe()
    try:
        with (
            pytest.raises(ProxyError, match=rf"cannot listen on fd:{reader}: "),
            bound([parse_address(f"fd:{reader}")]),
        ):
            raise AssertionError
    finally:
        os.close(reader)
        os.close(writer)
