"""Metrics: a real Prometheus reads them, while migrations pass."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests.lab.guest import counter_guest
from tests.lab.pki import Authority
from tests.lab.process import Process
from tests.lab.proxy import running_proxy
from tests.lab.vm import running_vm
from tests.live.helpers import A57_TO_A72, learn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.lab.proxy import Proxy

ALERTS = Path(__file__).parents[2] / "ops" / "prometheus" / "alerts.yml"
_LIMIT = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def fetched(url: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    return await trio.to_thread.run_sync(fetch)


class Prometheus:
    """One running Prometheus."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    async def query(self, expression: str) -> dict[str, float]:
        """Return the value of each series, by its labels but for those that all have."""
        _, text = await fetched(f"{self._url}/api/v1/query?query={urllib.parse.quote(expression)}")
        found: dict[str, Any] = json.loads(text or '{"data": {"result": []}}')
        values = {}
        for one in found["data"]["result"]:
            labels = {key: value for key, value in one["metric"].items() if key not in ("__name__", "instance", "job")}
            values[",".join(f"{key}={labels[key]}" for key in sorted(labels))] = float(one["value"][1])
        return values

    async def wait(self, expression: str, wanted: dict[str, float]) -> None:
        """Wait until it has scraped that."""
        found: dict[str, float] = {}
        with trio.move_on_after(_LIMIT):
            while found != wanted:
                found = await self.query(expression)
                await trio.sleep(0.2)
        assert found == wanted


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[Prometheus]:
    """Run a Prometheus that scrapes a target each second, and knows the alerts."""
    port, config = free_port(), folder / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(ALERTS)],
                "scrape_configs": [{"job_name": "vmstate-proxy", "static_configs": [{"targets": [target]}]}],
            }
        )
    )
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    process = Process([*command, f"--web.listen-address=127.0.0.1:{port}"], folder / "prometheus.log", cwd=folder)
    try:
        with trio.fail_after(_LIMIT):
            while (await fetched(f"http://127.0.0.1:{port}/-/ready"))[0] != 200:
                assert process.returncode is None, (folder / "prometheus.log").read_text()
                await trio.sleep(0.1)
        it = Prometheus(port)
        await it.wait("up", {"": 1})  # it looks for its targets every five seconds
        yield it
    finally:
        process.close()


async def metrics_of(proxy: Proxy) -> str:
    """Return where the proxy has its metrics, as HOST:PORT."""
    await proxy.wait_text("/healthz and /readyz")
    match = re.search(r"metrics and health at http://([^/]+)/metrics", proxy.text())
    assert match
    return match[1]


async def test_prometheus_has_what_three_migrations_came_to(tmp_path: Path) -> None:
    profile, pki = await learn(tmp_path, "cortex-a72"), Authority().folder(tmp_path / "pki", "server", "client")
    options = ("--host", profile, "--allow-midr", "none", *A57_TO_A72, "--metrics", "tcp::0")
    port = free_port()
    async with running_proxy(
        f"tcp:127.0.0.1:{port}", *options, "--listen-plain", "--connect-tls", pki, "--tls-hostname", "127.0.0.1"
    ) as encrypting:
        status, text = await fetched(f"http://{await metrics_of(encrypting)}/metrics")
        assert status == 200
        expiry = re.findall(r'certificate_expiry_timestamp_seconds\{file="[^"]+/([\w.-]+)"\} (\S+)', text)
        assert sorted(name for name, _ in expiry) == ["ca-cert.pem", "client-cert.pem"]
        assert all(float(when) > 1.8e9 for _, when in expiry)

    async with running_proxy(f"tcp:127.0.0.1:{port}", *options) as proxy:
        target = await metrics_of(proxy)
        assert await fetched(f"http://{target}/healthz") == (200, "ok\n")
        assert await fetched(f"http://{target}/readyz") == (200, "ready\n")
        async with prometheus(tmp_path, target) as it:
            for machine in ("virt-7.2", "virt-7.2", "virt-7.1"):
                async with (
                    running_vm(name="source", machine=machine, guest=counter_guest(touch_pages=2000)) as source,
                    running_vm(
                        name="there", machine=machine, cpu="cortex-a72", incoming=f"tcp:127.0.0.1:{port}"
                    ) as there,
                ):
                    await there.incoming_port()
                    await source.wait_counter_moves()
                    if machine == "virt-7.1":
                        # A source without a return path is refused.
                        await source.migrate(proxy.uri, return_path=False)
                        assert (await source.wait_migration()).status == "failed"
                        continue
                    await source.migrate(proxy.uri, parameters={"max-bandwidth": 2 << 20})
                    await it.wait("vmstate_proxy_migrations_under_way", {"": 1})
                    with trio.fail_after(_LIMIT):
                        while not (await it.query('increase(vmstate_proxy_bytes_total{way="out"}[10s]) > 1e6')):
                            await trio.sleep(0.2)
                    await source.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
                    assert (await source.wait_migration()).status == "completed", proxy.text()
            await it.wait(
                "vmstate_proxy_migrations_total > 0",
                {"cause=none,outcome=rewritten": 2, "cause=policy,outcome=refused": 1},
            )
            await it.wait("vmstate_proxy_held_seconds_count", {"": 2})
            await it.wait('vmstate_proxy_connections_total{kind="migration"}', {"kind=migration": 3})
            await it.wait(
                "vmstate_proxy_changed_registers_total",
                {"action=swap,register=ID_MMFR0": 2, "action=swap,register=ID_MMFR0_EL1": 2},
            )
            await it.wait("vmstate_proxy_migrations_under_way", {"": 0})
            assert await it.query('ALERTS{alertname="VmstateProxyMigrationRefused"}')
