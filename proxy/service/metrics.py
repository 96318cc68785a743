"""Metrics for Prometheus: what the relay did and does. They are counted as it happens, and read in another thread."""

import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import proxy
from proxy.live.watching import Arrived, Watcher
from proxy.net.tls.credentials import certificate_expiry
from proxy.report.report import Cause, Outcome

if TYPE_CHECKING:
    from proxy.live.session import Session
    from proxy.live.side_channels import SideChannels
    from proxy.report.report import Report

_without_created: Callable[[], None] = disable_created_metrics
_without_created()  # timestamps beside each counter, which nobody asks for

_NAME: Final = "vmstate_proxy"
_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_RAM_SECONDS: Final = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
_WAYS: Final = ("in", "out", "channels")


_CAUSES: Final = {
    Outcome.REWRITTEN: ("none",),
    Outcome.UNCHANGED: ("none",),
    Outcome.UNREAD: ("none",),
    Outcome.REFUSED: (Cause.POLICY, Cause.UNSUPPORTED),
    Outcome.FAILED: (Cause.MALFORMED, Cause.SOURCE, Cause.DESTINATION, Cause.KVM, Cause.STOPPED, Cause.INTERNAL),
}
"""They are there from the start: Prometheus sees no increase in what begins with 1."""


class Metrics(Watcher):
    """Counts what it is told.

    Attributes:
        registry: Has all of the metrics.
    """

    def __init__(self, certificates: "Callable[[], Iterable[str]]") -> None:
        """Make them.

        Args:
            certificates: Returns the paths of the certificates that are shown now; those that are there are told of.
        """
        self.registry = CollectorRegistry()
        self._under_way: dict[Session, tuple[Report, SideChannels]] = {}
        self._lock = threading.Lock()  # no scrape may see bytes that are in neither, or in both
        self._done = dict.fromkeys(_WAYS, 0)
        self._migrations = self._counter("migrations", "Migrations that ended.", "outcome", "cause")
        for outcome, causes in _CAUSES.items():
            for cause in causes:
                self._migrations.labels(outcome.value, cause)
        self._connections = self._counter("connections", "Connections, by what they turned out to be.", "kind")
        for kind in Arrived:
            self._connections.labels(kind.value)
        self._refused = self._counter("refused_registers", "Registers for which migrations were refused.", "register")
        self._changed = self._counter("changed_registers", "vCPUs' registers that were changed.", "register", "action")
        self._recoveries = self._counter("recoveries", "Postcopy migrations taken up again after they had broken.")
        self._reloads = self._counter("reloads", "Times that the settings were read anew.", "result")
        for result in ("applied", "rejected"):
            self._reloads.labels(result)
        self._reload_time = Gauge(
            f"{_NAME}_settings_timestamp_seconds", "When the settings that count were read.", registry=self.registry
        )
        self._reload_time.set(time.time())
        self._draining = Gauge(f"{_NAME}_draining", "Whether no more migrations are taken.", registry=self.registry)
        self._seconds = {
            "ram": self._histogram("ram", "From the first byte to the first of the device state.", _RAM_SECONDS),
            "held": self._histogram("held", "Device state held, the guest stands.", _SECONDS),
            "trial": self._histogram("trial", "The destination's kernel was asked.", _SECONDS),
            "last_in_to_first_out": self._histogram(
                "last_in_to_first_out", "From the last byte of device state in to its first byte out.", _SECONDS
            ),
        }
        Info(f"{_NAME}_build", "What runs.", registry=self.registry).info(
            {"version": proxy.__version__, "python": platform.python_version()}
        )
        self.registry.register(_Now(self, certificates))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{_NAME}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{_NAME}_{name}_seconds", text, buckets=buckets, registry=self.registry)

    @property
    def under_way(self) -> int:
        """How many migrations are under way."""
        return len(self._under_way)

    @property
    def paused(self) -> int:
        """How many of them are paused in postcopy, and wait for their source."""
        with self._lock:
            return sum(session.recovery.waits for session in self._under_way)

    def bytes(self) -> dict[str, int]:
        """Return how many bytes have passed, those of the migrations under way among them."""
        with self._lock:
            total = dict(self._done)
            for report, channels in self._under_way.values():
                _add(total, report, channels)
        return total

    def arrived(self, what: Arrived) -> None:
        """Count a connection."""
        self._connections.labels(what.value).inc()

    def begins(self, session: "Session") -> None:
        """Count a migration that begins."""
        with self._lock:
            self._under_way[session] = session.report, session.channels

    def ends(self, session: "Session", report: "Report") -> None:
        """Count what came of one."""
        with self._lock:
            _add(self._done, *self._under_way.pop(session))
        self._migrations.labels(report.outcome.value, "none" if report.cause is None else report.cause.value).inc()
        self._recoveries.inc(report.recoveries)
        for register in report.refused_registers:
            self._refused.labels(register).inc()
        for verdict in report.changes:
            self._changed.labels(verdict.name, verdict.action.value).inc()
        for name, seconds in report.times.as_dict().items():
            if seconds is not None:
                self._seconds[name].observe(seconds)

    def reloaded(self, *, well: bool) -> None:
        """Count that the settings were read anew, or could not be."""
        self._reloads.labels("applied" if well else "rejected").inc()
        if well:
            self._reload_time.set(time.time())

    def drains(self) -> None:
        """Note that no more migrations are taken."""
        self._draining.set(1)


def _add(total: dict[str, int], report: "Report", channels: "SideChannels") -> None:
    total["in"] += report.bytes_in
    total["out"] += report.bytes_out
    total["channels"] += channels.carried


class _Now(Collector):
    """What is looked at when somebody asks, so that it moves during a migration."""

    def __init__(self, metrics: Metrics, certificates: "Callable[[], Iterable[str]]") -> None:
        self._metrics = metrics
        self._certificates = certificates

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            f"{_NAME}_migrations_under_way", "Migrations that are under way.", self._metrics.under_way
        )
        yield GaugeMetricFamily(
            f"{_NAME}_migrations_paused", "Migrations under way that are paused in postcopy.", self._metrics.paused
        )
        passed = CounterMetricFamily(f"{_NAME}_bytes", "Bytes in, out, and out on channels.", labels=["way"])
        for way, count in self._metrics.bytes().items():
            passed.add_metric([way], count)
        yield passed
        expiry = GaugeMetricFamily(
            f"{_NAME}_certificate_expiry_timestamp_seconds", "When a certificate expires.", labels=["file"]
        )
        for path in self._certificates():
            if (when := certificate_expiry(Path(path))) is not None:
                expiry.add_metric([path], when)
        yield expiry
