"""Ranges of ports as people write them."""

from __future__ import annotations

import pytest

from proxy.errors import ConfigError
from proxy.net.redirection import MIGRATION_PORTS, PortRange, parse_ports


@pytest.mark.parametrize(
    ("text", "ports"),
    [("49152-49215", MIGRATION_PORTS), ("1-65535", PortRange(1, 65535)), ("49152", PortRange(49152, 49152))],
)
def test_it_is_read_and_written(text: str, ports: PortRange) -> None:
    assert parse_ports(text) == ports
    assert str(ports) == text


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1-2-3", "0-5", "5-4", "1-65536", "1 - 2", "\u0661"])
def test_what_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="ports "):
        parse_ports(text)


def test_both_ends_belong_to_it() -> None:
    assert [port for port in range(49150, 49220) if port in MIGRATION_PORTS] == list(range(49152, 49216))
