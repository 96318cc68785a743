"""The metrics, and whether the service is well, over HTTP: for Prometheus and for load balancers.

It has threads of its own, so that nobody who asks holds up a migration.
"""

import socketserver
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import trio
from prometheus_client import make_wsgi_app

from proxy.errors import ConfigError, ProxyError
from proxy.net.address import FdAddress, TcpAddress, parse_address
from proxy.net.binding import bind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import CollectorRegistry

    from proxy.net.binding import Bound

_BEAT: Final = 1.0
_STALE: Final = 5.0
"""Seconds after which an event loop that did not beat is taken to hang."""
_PATIENCE: Final = 10.0
"""Seconds that a client may take for its request."""


class Health:
    """Whether the event loop goes on, and whether migrations are taken."""

    def __init__(self) -> None:
        self._beaten = time.monotonic()
        self.is_ready: Callable[[], bool] = lambda: False

    async def run(self) -> None:
        """Beat, as long as the event loop does."""
        while True:
            self._beaten = time.monotonic()
            await trio.sleep(_BEAT)

    @property
    def alive(self) -> bool:
        """Whether it has beaten lately."""
        return time.monotonic() - self._beaten < _STALE


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 16

    def server_bind(self) -> None:
        """Listen on what was bound already; do not look up its name, which may take long."""
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def server_activate(self) -> None:
        """It listens already."""


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE

    def log_message(self, *_: object) -> None:
        """Keep what Prometheus asks every few seconds out of the log."""


@contextmanager
def serving(address: str, registry: "CollectorRegistry", health: Health) -> "Iterator[list[Bound]]":
    """Serve /metrics, /healthz and /readyz for the length of the block.

    Args:
        address: Where: `tcp:HOST:PORT`; without a host, the loopback interface.
        registry: The metrics.
        health: How the service is.

    Raises:
        ConfigError: It is no TCP address.
        ProxyError: It cannot be listened on.
    """
    where = parse_address(address)
    if not isinstance(where, TcpAddress | FdAddress):
        raise ConfigError(f"--metrics {address}: write tcp:HOST:PORT")
    bounds = bind(where)
    application = _application(registry, health)
    servers = []
    try:
        for one in bounds:
            if one.socket is None or not one.listens:
                raise ProxyError(f"--metrics {address}: it does not listen")
            server = _Server(("", 0), _Handler, bind_and_activate=False)
            server.socket.close()
            server.socket = one.socket
            server.server_bind()
            server.set_app(application)
            servers.append(server)
            threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        yield bounds
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for one in bounds:
            one.close()


def _application(registry: "CollectorRegistry", health: Health) -> "Callable[..., Iterable[bytes]]":
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start: "Callable[..., Any]") -> "Iterable[bytes]":
        def answer(*, well: bool, words: str) -> "Iterable[bytes]":
            start("200 OK" if well else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{words}\n".encode()]

        match environ["PATH_INFO"]:
            case "/metrics":
                found: Iterable[bytes] = metrics(environ, start)
                return found
            case "/healthz":
                return answer(well=health.alive, words="ok" if health.alive else "the event loop hangs")
            case "/readyz":
                ready = health.alive and health.is_ready()
                return answer(well=ready, words="ready" if ready else "no migrations are taken")
        start("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"there are /metrics, /healthz and /readyz\n"]

    return application
