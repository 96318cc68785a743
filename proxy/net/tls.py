"""TLS: ended at the proxy, and begun anew towards the destination, with x509 credentials of each side's own.

A folder with credentials is laid out as that of QEMU's `tls-creds-x509`. It is read for every connection, so that
renewed certificates need no restart. Source: QEMU `docs/system/tls.rst`, `crypto/tlscredsx509.c`.
"""

import os
import socket
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from proxy.errors import ConfigError, PeerError
from proxy.net.connection import Connection, SocketConnection, acknowledge

if TYPE_CHECKING:
    from collections.abc import Callable

CA, CRL = "ca-cert.pem", "ca-crl.pem"

_Done = TypeVar("_Done")

_HANDSHAKE_TIMEOUT: Final = 10.0
_RESET: Final = struct.pack("ii", 1, 0)
_BREATH: Final = 0.01
_RECORD: Final = 1 << 14
_AT_ONCE: Final = 16 * _RECORD
"""Bytes received at once, at most: the peer must not be kept waiting for what has been decrypted."""
_TURN: Final = 64
"""Operations after which other tasks get their turn, where the socket is always ready."""

_WORDS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has shown no certificate",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "PACKET_LENGTH_TOO_LONG": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
    "UNEXPECTED_EOF_WHILE_READING": "it ended the connection; its own log says why",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate, and was shown none",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority that signed the certificate it was shown",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the certificate that it was shown has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the certificate that it was shown has been revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not take the certificate that it was shown",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not take the certificate that it was shown",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it has no kind of TLS in common with the proxy",
    "NO_SHARED_CIPHER": "it has no kind of TLS in common with the proxy",
    "UNSUPPORTED_PROTOCOL": "it has no kind of TLS in common with the proxy",
}
"""What OpenSSL's reasons mean to an operator."""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What sources must speak.

    Attributes:
        folder: ca-cert.pem, server-cert.pem, server-key.pem; ca-crl.pem if there is one.
        clients: The common names of the clients that may come; empty for all that the authority has signed.
    """

    folder: str
    clients: frozenset[str] = frozenset()

    def check(self) -> None:
        """Read the credentials once.

        Raises:
            ConfigError: They cannot be read, or do not belong together.
        """
        self._context()

    async def welcome(self, source: Connection) -> Connection:
        """Shake hands with a source that connected; see `_shaken`."""
        connection = await _shaken(source, self._context, server_side=True)
        name = connection.common_name
        if self.clients and name not in self.clients:
            connection.reset()
            listed = ", ".join(sorted(self.clients))
            raise PeerError("source", f"shows the certificate of {name!r}, and --tls-allow-client has {listed}")
        return connection

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return _loaded(context, self.folder, "server")


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What is spoken to the destination.

    Attributes:
        folder: ca-cert.pem, client-cert.pem, client-key.pem; ca-crl.pem if there is one.
        hostname: Whose certificate the destination must show; None for the host that is dialled.
    """

    folder: str
    hostname: str | None = None

    def check(self) -> None:
        """Read the credentials once; see `ServerTls.check`."""
        self._context()

    async def greet(self, destination: Connection, host: str) -> Connection:
        """Shake hands with a destination that was dialled; see `_shaken`."""
        name = self.hostname or host
        if not name:
            destination.reset()
            problem = f"at {destination.name} has no host name that could be checked; give it one by --tls-hostname"
            raise PeerError("destination", problem)
        return await _shaken(destination, self._context, server_hostname=name)

    def _context(self) -> ssl.SSLContext:
        return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self.folder, "client")


_OPTIONS: Final[dict[str, Any]] = {"do_handshake_on_connect": False, "suppress_ragged_eofs": True}
"""QEMU 7.2 ends without a close_notify, and a reset looks the same here, so an end of file proves nothing. What a
stream lacks is found by the parser, and by who waits for SHUT."""


class TlsConnection(Connection):
    """A connection over TLS, straight on its socket."""

    def __init__(self, below: SocketConnection, wrap: "Callable[[socket.socket], ssl.SSLSocket]") -> None:
        super().__init__(below.peer, below.name, below.host)
        raw = socket.socket(fileno=below.socket.detach())
        raw.setblocking(False)
        self._unread = b""
        self._ended = False
        self._since_turn = 0
        self._broken: OSError | None = None
        try:
            self._socket = wrap(raw)
        except BaseException:
            raw.close()
            raise

    @property
    def common_name(self) -> str:
        """The common name of the peer's certificate; empty where it has none."""
        certificate = self._socket.getpeercert() or {}
        subject: Any = certificate.get("subject", ())
        return next((value for rdn in subject for key, value in rdn if key == "commonName"), "")

    async def shake_hands(self) -> None:
        """Do the handshake; raises PeerError."""
        await self._patiently(self._socket.do_handshake)

    async def receive(self, buffer: memoryview) -> int:
        """Receive into a buffer; see `Connection.receive`."""
        length = await self._patiently(partial(self._receive, buffer))
        acknowledge(self._socket, length)
        return length

    async def send(self, data: "bytes | bytearray | memoryview") -> None:
        """Send all of `data`; see `Connection.send`."""
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                sent += await self._patiently(partial(self._socket.send, view[sent:]))

    async def finish(self) -> None:
        """Send close_notify, and carry the half-close over; see `Connection.finish`."""
        await trio.lowlevel.checkpoint()
        self._say_goodbye()
        with suppress(OSError):
            # The method of SSLSocket would make it a plain one, for the other direction, too.
            socket.socket.shutdown(self._socket, socket.SHUT_WR)

    def close(self) -> None:
        """Close it in order."""
        if self._socket.fileno() >= 0:
            self._say_goodbye()
            self._close()

    def reset(self) -> None:
        """Close it with a TCP reset; see `SocketConnection.reset`."""
        if self._socket.fileno() >= 0:
            if self._socket.family != socket.AF_UNIX:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._close()

    def _receive(self, buffer: memoryview) -> int:
        if self._unread:
            length = min(len(buffer), len(self._unread))
            buffer[:length], self._unread = self._unread[:length], self._unread[length:]
            return length
        if self._broken is not None:
            raise self._broken
        if self._ended:
            return 0
        # A record has 16 KiB at most; as many as have come are taken at once.
        filled, most = 0, min(len(buffer), _AT_ONCE)
        try:
            while filled < most and (length := self._socket.recv_into(buffer[filled:most])):
                filled += length
        except ssl.SSLZeroReturnError:
            pass  # both have said goodbye
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not filled:
                raise
        except OSError as error:
            if not filled:
                raise
            self._broken = error
        return filled

    def _close(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def _say_goodbye(self) -> None:
        """Send close_notify as far as that goes at once; what the peer still sends can be received after it."""
        if self._ended:
            return
        try:
            # Python's goodbye waits for the peer's, and takes what stands before it for an error.
            while data := self._socket.recv(_RECORD):
                self._unread += data
        except OSError:
            pass
        try:
            self._socket.unwrap()
            self._ended = True  # the peer had said goodbye before
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._broken = error

    async def _patiently(self, operation: "Callable[[], _Done]") -> _Done:
        """Do something on the socket, waiting until it can be done; raises PeerError."""
        self._since_turn += 1
        if self._since_turn >= _TURN:
            self._since_turn = 0
            await trio.lowlevel.checkpoint()
        try:
            while True:
                try:
                    return operation()
                except ssl.SSLWantReadError:
                    await _waited(trio.lowlevel.wait_readable, self._socket)
                except ssl.SSLWantWriteError:
                    await _waited(trio.lowlevel.wait_writable, self._socket)
                self._since_turn = 0
        except (OSError, trio.ClosedResourceError) as error:
            raise PeerError(self.peer, f"broke the connection: {_explained(error)}") from error


async def _waited(wait: "Callable[[socket.socket], Any]", sock: socket.socket) -> None:
    """Wait for one direction; should the other pump wait for the same, as when keys are renewed, try again soon."""
    try:
        await wait(sock)
    except trio.BusyResourceError:
        await trio.sleep(_BREATH)


async def _shaken(
    below: Connection,
    make_context: "Callable[[], ssl.SSLContext]",
    **options: Any,  # noqa: ANN401 - of wrap_socket
) -> TlsConnection:
    """Shake hands on a connection.

    Raises:
        PeerError: The peer cannot be trusted, does not trust the proxy, or speaks no TLS; or the credentials, which may
            just be being renewed, cannot be read. The connection is reset.
    """
    if not isinstance(below, SocketConnection):
        below.reset()
        raise PeerError(below.peer, "is reached by no socket, so there is no TLS to it")
    try:
        context = make_context()
    except ConfigError as error:
        below.reset()
        raise PeerError(below.peer, f"cannot be spoken to: {error}") from error
    try:
        connection = TlsConnection(below, partial(context.wrap_socket, **_OPTIONS, **options))
    except (OSError, ValueError, TypeError) as error:
        raise PeerError(below.peer, f"cannot be spoken to: {error}") from error
    try:
        with trio.fail_after(_HANDSHAKE_TIMEOUT):
            await connection.shake_hands()
    except trio.TooSlowError:
        connection.reset()
        raise PeerError(below.peer, f"did not shake hands within {_HANDSHAKE_TIMEOUT:g} seconds") from None
    except PeerError as error:
        # Not a reset: an alert is on its way that tells the peer why.
        connection.close()
        raise PeerError(below.peer, f"failed the TLS handshake: {_explained(error.__cause__)}") from error.__cause__
    except BaseException:
        connection.reset()
        raise
    return connection


def _loaded(context: ssl.SSLContext, folder: str, role: str) -> ssl.SSLContext:
    """Load the credentials of one role into a context."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A peer that ends without a close_notify can still be answered.
    context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    certificate, key = os.path.join(folder, f"{role}-cert.pem"), os.path.join(folder, f"{role}-key.pem")
    authority, revoked = os.path.join(folder, CA), os.path.join(folder, CRL)
    for path in (authority, certificate, key):
        try:
            with open(path, "rb"):
                pass
        except (OSError, ValueError) as error:
            problem = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                f"{path}: {problem}; a folder for TLS holds {CA}, {role}-cert.pem and {role}-key.pem, as QEMU's"
            ) from error
    path = authority
    try:
        context.load_verify_locations(authority)
        path = f"{certificate}, {key}"
        context.load_cert_chain(certificate, key, password=_no_password)
        if os.path.exists(revoked):
            path = revoked
            context.load_verify_locations(revoked)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{path}: {_explained(error)}") from error
    return context


def _no_password() -> str:
    raise OSError(None, "the key is encrypted, and there is nobody to ask")


def _explained(error: BaseException | None) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not taken: {error.verify_message}"
        case ssl.SSLEOFError():
            return "it ended the connection; its own log says why"
        case ssl.SSLError():
            return _WORDS.get(error.reason, error.reason or str(error)).replace("_", " ")
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error)
