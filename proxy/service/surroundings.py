"""All that a relay has around it as a service: who watches it, and what runs beside it."""

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from proxy.service.notifier import notifier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from proxy.live.relay import Relay
    from proxy.live.watching import Watcher
    from proxy.net.binding import Bound

_SHOWN = {"server": ("ca-cert.pem", "server-cert.pem"), "client": ("ca-cert.pem", "client-cert.pem")}


class Surroundings:
    """Collects what a relay gets.

    Attributes:
        watchers: Are told what it does.
        companions: Run beside it.
    """

    def __init__(self, environment: "Mapping[str, str]") -> None:
        """Learn from the environment whether a service manager wants to be told."""
        self.watchers: list[Watcher] = []
        self.companions: list[Callable[[], Awaitable[None]]] = []
        self._relay: Relay | None = None
        self._manager = notifier(environment)
        if self._manager is not None:
            self.watchers.append(self._manager)
            self.companions.append(self._manager.run)

    def surround(self, relay: "Relay") -> None:
        """Learn which relay it is."""
        self._relay = relay
        if self._manager is not None:
            self._manager.watch(relay.under_way)

    @contextmanager
    def metrics_at(self, address: str) -> "Iterator[list[Bound]]":
        """Serve metrics and health for the length of the block; see `proxy.service.web.serving`."""
        from proxy.service.metrics import Metrics
        from proxy.service.web import Health, serving

        metrics, health = Metrics(self._certificates), Health()
        health.is_ready = self._is_ready
        self.watchers.append(metrics)
        self.companions.append(health.run)
        with serving(address, metrics.registry, health) as bounds:
            yield bounds

    def _is_ready(self) -> bool:
        return self._relay is not None and not self._relay.under_way.draining

    def _certificates(self) -> "Iterator[str]":
        """Yield the paths of the certificates that count now."""
        if self._relay is None:
            return
        config = self._relay.config
        folders = {}
        if config.tls is not None:
            folders["server"] = config.tls.folder
        if config.route.tls is not None:
            folders["client"] = config.route.tls.folder
        paths = [os.path.join(folder, name) for role, folder in folders.items() for name in _SHOWN[role]]
        yield from dict.fromkeys(paths)
