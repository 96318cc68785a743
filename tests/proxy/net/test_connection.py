"""What a connection tells of its peer."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio

from proxy.net.connection import SocketConnection

if TYPE_CHECKING:
    from collections.abc import Callable


def half_close(peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)


def close(peer: socket.socket) -> None:
    peer.close()


def close_over_unread_bytes(peer: socket.socket) -> None:
    """Its kernel resets the connection."""
    peer.recv(1, socket.MSG_PEEK)
    peer.close()


@pytest.mark.parametrize("end", [half_close, close, close_over_unread_bytes])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("unread", [b"", b"still to be received"])
async def test_an_end_is_noticed_before_it_is_received(
    kind: str, end: Callable[[socket.socket], None], unread: bytes
) -> None:
    here, peer = tcp_pair() if kind == "tcp" else socket.socketpair()
    here.setblocking(False)
    connection = SocketConnection("source", trio.socket.from_stdlib_socket(here), name="a source")
    await connection.send(b"to the source")
    peer.send(unread)
    assert not connection.has_ended()
    end(peer)
    assert connection.has_ended()
    connection.close()
    peer.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        return here, server.accept()[0]
