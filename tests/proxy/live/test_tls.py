"""TLS: what is let in, what is not and why; and the bytes that pass."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from formats.arm.sysreg import MIDR_EL1
from proxy.errors import ConfigError, PeerError
from proxy.live.relay import Relay
from proxy.live.session_config import SessionConfig
from proxy.net.address import TcpAddress, parse_address
from proxy.net.binding import bound
from proxy.net.connection import SocketConnection
from proxy.net.route import Route
from proxy.net.tls.connection import TlsConnection
from proxy.net.tls.roles import ClientTls, ServerTls
from proxy.report.report import Outcome, Report
from tests.lab.pki import Authority
from tests.proxy.helpers import R0, R3, SHUT_OK, judge, live, log_into, short, with_value
from tests.proxy.live.test_session import connect, listen, rest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from proxy.net.connection import Connection

STREAM = live(short("kvm-trixie-a57r0"))
EXPECTED = with_value(STREAM, MIDR_EL1, R3, 0)
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@dataclass
class Service:
    """A relay with TLS on both sides, and what it said."""

    port: int
    back: trio.socket.SocketType
    said: list[str] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    async def wait_said(self, text: str) -> None:
        while not any(text in line for line in self.said):
            await trio.sleep(0.005)

    async def dial(self) -> Connection:
        return SocketConnection("proxy", await connect(("127.0.0.1", self.port)))


@asynccontextmanager
async def service(server: ServerTls | None, client: ClientTls | None) -> AsyncIterator[Service]:
    with trio.fail_after(20), bound([parse_address("tcp:127.0.0.1:0")]) as bounds, await listen() as back:
        it = Service(int(bounds[0].name.rpartition(":")[2]), back)
        config = SessionConfig(Route(TcpAddress("127.0.0.1", back.getsockname()[1]), client), judge(R0), tls=server)
        relay = Relay(config, log_into(it.said), it.reports.append)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run, *bounds)
            yield it
            relay.stop()


@pytest.fixture
def near() -> Authority:
    return Authority()


@pytest.fixture
def far() -> Authority:
    return Authority()


async def receive_all(connection: Connection, length: int) -> bytes:
    got, buffer = b"", memoryview(bytearray(1 << 16))
    while len(got) < length:
        count = await connection.receive(buffer)
        if not count:
            break
        got += bytes(buffer[:count])
    return got


async def test_a_migration_passes_with_credentials_of_each_sides_own(
    tmp_path: Path, near: Authority, far: Authority
) -> None:
    here = near.folder(tmp_path / "near", "server", "client")
    there = far.folder(tmp_path / "far", "server", "client")
    async with service(ServerTls(here), ClientTls(there)) as it:
        source = await ClientTls(here).greet(await it.dial(), "127.0.0.1")

        async def send() -> None:
            for at in range(0, len(STREAM), 10_000):
                await source.send(STREAM[at : at + 10_000])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            accepted, _ = await it.back.accept()
            destination = await ServerTls(there).welcome(SocketConnection("peer", accepted))
            assert await receive_all(destination, len(EXPECTED)) == EXPECTED
        await destination.send(SHUT_OK)
        await destination.finish()
        assert await receive_all(source, len(SHUT_OK)) == SHUT_OK
        assert await source.receive(memoryview(bytearray(1))) == 0
        await source.finish()
        assert await destination.receive(memoryview(bytearray(1))) == 0
        destination.close()
        source.close()
        while not it.reports:
            await trio.sleep(0.005)
    assert it.reports[0].outcome is Outcome.REWRITTEN


async def try_to_send(folder: str, it: Service) -> None:
    """Send as a source that may learn only later, as TLS 1.3 has it, that it is not let in."""
    with suppress(PeerError):
        source = await ClientTls(folder).greet(await it.dial(), "127.0.0.1")
        try:
            await source.send(STREAM)
            assert await receive_all(source, 1) == b""
        finally:
            source.close()


REFUSED_SOURCES = {
    "wrong authority": ("other", {}, "its certificate is not taken"),
    "expired": ("same", {"until": LONG_AGO}, "its certificate is not taken: certificate has expired"),
    "not allowed": ("same", {"name": "mallory"}, "shows the certificate of 'mallory', and --tls-allow-client has"),
}


@pytest.mark.parametrize(("authority", "certificate", "words"), REFUSED_SOURCES.values(), ids=REFUSED_SOURCES)
async def test_a_source_that_is_not_let_in(
    tmp_path: Path, near: Authority, far: Authority, authority: str, certificate: dict[str, object], words: str
) -> None:
    here = near.folder(tmp_path / "near", "server", name="alice")
    signer = near if authority == "same" else far
    shown = signer.folder(tmp_path / "shown", "client", **{"name": "alice", **certificate})  # type: ignore[arg-type]
    os.replace(os.path.join(here, "ca-cert.pem"), tmp_path / "ca")
    (tmp_path / "shown" / "ca-cert.pem").write_bytes((tmp_path / "ca").read_bytes())
    os.replace(tmp_path / "ca", os.path.join(here, "ca-cert.pem"))
    async with service(ServerTls(here, frozenset({"alice"})), None) as it:
        await try_to_send(shown, it)
        await it.wait_said(words)
        with trio.move_on_after(0.05):
            await it.back.accept()
            pytest.fail("the destination was dialled")
    assert it.reports == []


async def test_a_source_without_a_certificate(tmp_path: Path, near: Authority) -> None:
    here = near.folder(tmp_path / "near", "server")
    context = ssl.create_default_context(cafile=os.path.join(here, "ca-cert.pem"))
    async with service(ServerTls(here), None) as it:
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", it.port), context, server_hostname="127.0.0.1")
        with suppress(trio.BrokenResourceError):
            await stream.send_all(STREAM)
            assert await stream.receive_some() == b""
        await trio.aclose_forcefully(stream)
        await it.wait_said("the source failed the TLS handshake: it has shown no certificate")


async def test_a_source_without_a_certificate_is_let_in_where_anyone_is(tmp_path: Path, near: Authority) -> None:
    here = near.folder(tmp_path / "near", "server")
    context = ssl.create_default_context(cafile=os.path.join(here, "ca-cert.pem"))
    async with service(ServerTls(here, anyone=True), None) as it:
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", it.port), context, server_hostname="127.0.0.1")
        await stream.send_all(STREAM)
        destination, _ = await it.back.accept()
        assert await receive_all(SocketConnection("destination", destination), len(EXPECTED)) == EXPECTED
        destination.close()
        await trio.aclose_forcefully(stream)


async def test_a_destination_that_wants_no_certificate_is_shown_none(tmp_path: Path, far: Authority) -> None:
    folder = far.folder(tmp_path / "far", "client")
    (tmp_path / "far" / "client-cert.pem").unlink()
    with pytest.raises(ConfigError, match=r"client-cert\.pem: No such file"):
        ClientTls(folder).check()  # half of it is a mistake
    (tmp_path / "far" / "client-key.pem").unlink()
    ClientTls(folder).check()
    (tmp_path / "far" / "ca-cert.pem").unlink()
    with pytest.raises(ConfigError, match=r"ca-cert\.pem: No such file"):
        ClientTls(folder).check()


async def test_a_source_that_speaks_no_tls(tmp_path: Path, near: Authority) -> None:
    here = near.folder(tmp_path / "near", "server")
    async with service(ServerTls(here), None) as it:
        with await connect(("127.0.0.1", it.port)) as source:
            await source.send(STREAM[:100])
            await rest(source)
        await it.wait_said("the source failed the TLS handshake: it does not speak TLS")


REFUSED_DESTINATIONS = {
    "wrong authority": ("other", {}, "its certificate is not taken"),
    "expired": ("same", {"until": LONG_AGO}, "certificate has expired"),
    "another host": ("same", {"host": "127.0.0.9"}, "certificate is not valid for '127.0.0.1'"),
}


@pytest.mark.parametrize(("authority", "certificate", "words"), REFUSED_DESTINATIONS.values(), ids=REFUSED_DESTINATIONS)
async def test_a_destination_that_is_not_trusted(
    tmp_path: Path, near: Authority, far: Authority, authority: str, certificate: dict[str, object], words: str
) -> None:
    there = far.folder(tmp_path / "far", "client")
    shown = (far if authority == "same" else near).folder(tmp_path / "shown", "server", **certificate)  # type: ignore[arg-type]
    async with service(None, ClientTls(there)) as it:
        with await connect(("127.0.0.1", it.port)) as source:
            await source.send(STREAM[:100])
            accepted, _ = await it.back.accept()
            with pytest.raises(PeerError):
                await ServerTls(shown).welcome(SocketConnection("peer", accepted))
            assert (await rest(source))[1] == "reset"
        while not it.reports:
            await trio.sleep(0.005)
    assert it.reports[0].outcome is Outcome.FAILED
    assert words in str(it.reports[0].reason)
    assert it.reports[0].bytes_out == 0


async def test_another_host_name_can_be_given(tmp_path: Path, far: Authority) -> None:
    there = far.folder(tmp_path / "far", "server", "client", host="rack7")
    async with service(None, ClientTls(there, "rack7")) as it:
        with await connect(("127.0.0.1", it.port)) as source:
            await source.send(STREAM[:100])
            accepted, _ = await it.back.accept()
            destination = await ServerTls(there).welcome(SocketConnection("peer", accepted))
            assert (await receive_all(destination, 8)).startswith(STREAM[:8])
            destination.reset()
            await rest(source)
        while not it.reports:
            await trio.sleep(0.005)
    assert it.reports[0].outcome is Outcome.FAILED


async def test_large_data_both_ways_at_once(tmp_path: Path, near: Authority) -> None:
    data = os.urandom(3 << 20)
    one, other = await both_ends(near.folder(tmp_path / "both", "server", "client"))

    async def through(here: TlsConnection, there: TlsConnection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.send, data)
            assert await receive_all(there, len(data)) == data

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(through, one, other)
            nursery.start_soon(through, other, one)
    one.close()
    other.close()


async def both_ends(folder: str) -> tuple[TlsConnection, TlsConnection]:
    """Return the server's and the client's end of one connection."""
    ends: list[Connection] = []
    with await listen() as front:

        async def client() -> None:
            sock = await connect(front.getsockname())
            ends.append(await ClientTls(folder).greet(SocketConnection("server", sock), "127.0.0.1"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            accepted, _ = await front.accept()
            ends.append(await ServerTls(folder).welcome(SocketConnection("client", accepted)))
    one, other = ends
    assert isinstance(one, TlsConnection)
    assert isinstance(other, TlsConnection)
    return one, other


async def test_what_came_before_a_goodbye_is_not_lost(tmp_path: Path, near: Authority) -> None:
    one, other = await both_ends(near.folder(tmp_path / "both", "server", "client"))
    await one.send(b"x" * 40_000)
    await trio.sleep(0.05)
    await other.finish()
    assert await receive_all(other, 40_000) == b"x" * 40_000
    assert await one.receive(memoryview(bytearray(1))) == 0
    one.close()
    other.close()


@pytest.mark.parametrize("unread", [b"", b"x" * 40_000])
async def test_an_end_is_noticed_before_it_is_received(unread: bytes, tmp_path: Path, near: Authority) -> None:
    one, other = await both_ends(near.folder(tmp_path / "both", "server", "client"))
    await other.send(unread)
    assert not one.has_ended()
    other.close()
    await trio.lowlevel.wait_readable(one.socket)
    assert one.has_ended()
    assert await receive_all(one, len(unread)) == unread
    assert await one.receive(memoryview(bytearray(1))) == 0
    one.close()


async def test_a_source_is_sent_nothing_that_it_would_leave_unread(tmp_path: Path, near: Authority) -> None:
    """A session ticket: a source without a return path reads nothing, and a close over unread bytes is a reset."""
    ends = await both_ends(near.folder(tmp_path / "both", "server", "client"))
    [source] = [end for end in ends if end.peer == "server"]
    with trio.move_on_after(0.2) as scope:
        await trio.lowlevel.wait_readable(source.socket)
    assert scope.cancelled_caught
    for end in ends:
        end.close()


async def test_a_peer_that_ended_in_order_and_can_be_told_no_goodbye_has_ended(tmp_path: Path, near: Authority) -> None:
    """As QEMU's multifd channels do: an end of file, then a reset, as something that was sent to it lies unread."""
    one, other = await both_ends(near.folder(tmp_path / "both", "server", "client"))
    await one.send(b"unread")
    socket.socket.shutdown(other.socket, socket.SHUT_RDWR)
    os.close(other.socket.detach())
    await trio.lowlevel.wait_readable(one.socket)
    await one.finish()
    assert await one.receive(memoryview(bytearray(1))) == 0
    one.close()


async def test_credentials_that_vanish_end_no_service(tmp_path: Path, near: Authority, far: Authority) -> None:
    """As they do for a moment when they are renewed."""
    here, there = near.folder(tmp_path / "near", "server", "client"), far.folder(tmp_path / "far", "client")
    async with service(ServerTls(here), ClientTls(there)) as it:
        os.unlink(os.path.join(there, "client-key.pem"))
        source = await ClientTls(here).greet(await it.dial(), "127.0.0.1")
        await source.send(STREAM[:100])
        while not it.reports:
            await trio.sleep(0.005)
        source.close()
        assert "client-key.pem" in str(it.reports[0].reason)
        os.unlink(os.path.join(here, "server-key.pem"))
        with await connect(("127.0.0.1", it.port)) as sock:
            await rest(sock)
        await it.wait_said("server-key.pem")


@pytest.mark.parametrize("missing", ["ca-cert.pem", "server-cert.pem", "server-key.pem"])
def test_a_folder_that_lacks_a_file(tmp_path: Path, near: Authority, missing: str) -> None:
    folder = near.folder(tmp_path / "near", "server")
    os.unlink(os.path.join(folder, missing))
    with pytest.raises(ConfigError, match=missing):
        ServerTls(folder).check()


def test_a_key_of_another_certificate(tmp_path: Path, near: Authority) -> None:
    folder = near.folder(tmp_path / "near", "server", "client")
    os.replace(os.path.join(folder, "client-key.pem"), os.path.join(folder, "server-key.pem"))
    with pytest.raises(ConfigError, match=r"server-key\.pem"):
        ServerTls(folder).check()
