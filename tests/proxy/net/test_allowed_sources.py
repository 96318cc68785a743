"""Which networks sources may be in."""

from __future__ import annotations

import pytest

from proxy.errors import ConfigError, RefusedError
from proxy.net.allowed_sources import AllowedSources, parse_networks

FLEET = parse_networks(["10.0.0.0/24", "fd00:1::/32", "192.0.2.7"])


@pytest.mark.parametrize("host", ["10.0.0.1", "10.0.0.255", "::ffff:10.0.0.9", "fd00:1::5", "192.0.2.7", ""])
def test_who_is_in_one_of_them(host: str) -> None:
    FLEET.check(host)


@pytest.mark.parametrize("host", ["10.0.1.1", "::ffff:10.0.1.1", "fd00:2::5", "192.0.2.8", "::1", "fe80::1%eth0"])
def test_who_is_not(host: str) -> None:
    with pytest.raises(RefusedError, match=r"none of the networks of --allow-source: 10\.0\.0\.0/24, "):
        FLEET.check(host)


def test_without_any_everybody_may() -> None:
    AllowedSources().check("203.0.113.1")


@pytest.mark.parametrize("text", ["10.0.0.1/24", "10.0.0/24", "rack7", ""])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ConfigError, match="--allow-source"):
        parse_networks([text])
