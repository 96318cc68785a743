"""Alerts and dashboard: Prometheus takes them, and they speak of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import generate_latest

from proxy.service.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

OPS = Path(__file__).parents[2] / "ops"
ALERTS = OPS / "prometheus" / "alerts.yml"


def promtool(*arguments: str | Path, stdin: str = "") -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dashboard_queries() -> Iterator[str]:
    for panel in json.loads((OPS / "grafana" / "vmstate-proxy.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def test_prometheus_takes_the_alerts_and_they_ring_when_they_should() -> None:
    assert "SUCCESS: 8 rules found" in promtool("check", "rules", ALERTS)
    promtool("test", "rules", OPS / "prometheus" / "alerts_test.yml")


def test_prometheus_takes_the_metrics() -> None:
    text = generate_latest(Metrics(lambda: ()).registry).decode()
    assert promtool("check", "metrics", stdin=text) == ""


def test_prometheus_takes_the_dashboards_queries(tmp_path: Path) -> None:
    queries = [query.replace("$__rate_interval", "5m").replace("$instance", ".*") for query in dashboard_queries()]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    assert f"{len(queries)} rules found" in promtool("check", "rules", path)


def test_what_they_speak_of_is_there() -> None:
    there = set(re.findall(r"^# TYPE (\w+)", generate_latest(Metrics(lambda: ()).registry).decode(), re.MULTILINE))
    asked = set(re.findall(r"vmstate_proxy_\w+", ALERTS.read_text() + " ".join(dashboard_queries())))
    assert {re.sub(r"_bucket$", "", name) for name in asked} <= there
