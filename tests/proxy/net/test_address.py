"""Addresses in QEMU's syntax."""

from __future__ import annotations

import socket

import pytest

from proxy.errors import ConfigError, ExitCode
from proxy.net.address import TcpAddress, UnixAddress, format_address, parse_address

ANY, FOUR, SIX = socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize(
    ("text", "host", "port", "family"),
    [
        ("tcp:127.0.0.1:4444", "127.0.0.1", 4444, ANY),
        ("tcp:host.example:0", "host.example", 0, ANY),
        ("tcp:my-host:65535", "my-host", 65535, ANY),
        ("tcp::4444", "", 4444, ANY),
        ("tcp:[::1]:4444", "::1", 4444, ANY),
        ("tcp:[::]:1", "::", 1, ANY),
        ("tcp:[fe80::1%eth0]:1", "fe80::1%eth0", 1, ANY),
        ("tcp:[::1]:4444,ipv6", "::1", 4444, SIX),
        ("tcp:h:1,ipv4", "h", 1, FOUR),
        ("tcp:h:1,ipv4=on", "h", 1, FOUR),
        ("tcp:h:1,ipv6=on", "h", 1, SIX),
        ("tcp:h:1,ipv6", "h", 1, SIX),
        ("tcp:h:1,ipv4=off", "h", 1, SIX),
        ("tcp:h:1,ipv6=off", "h", 1, FOUR),
        ("tcp:h:1,ipv4=on,ipv6=on", "h", 1, ANY),
        ("tcp:h:1,ipv4,ipv6", "h", 1, ANY),
        ("tcp:h:1,ipv4=on,ipv6=off", "h", 1, FOUR),
        ("tcp:h:1,ipv4=off,ipv6=on", "h", 1, SIX),
    ],
)
def test_good_addresses(text: str, host: str, port: int, family: socket.AddressFamily) -> None:
    assert parse_address(text) == TcpAddress(host, port, family)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp:",
        "tcp:host",
        "tcp:host:",
        "tcp:host:http",
        "tcp:host:-1",
        "tcp:host:65536",
        "tcp:host:99999999999999999999",
        "tcp:host:" + "9" * 5000,
        "tcp:host:4444 ",
        "tcp:host:4444\n",
        "tcp:host:\u0664\u0664",
        "host:4444",
        "TCP:host:4444",
        "unix:",
        "unix:@",
        "unix:/" + 107 * "x",
        "exec:cat",
        "fd:",
        "fd:name",
        "fd:-1",
        "vsock:2",
        "vsock:host:1",
        "vsock:4294967296:1",
        "stdio:1",
        "stdio",
        "systemd:x",
        "rdma:host:4444",
        "tcp:::1:4444",
        "tcp:[]:4444",
        "tcp:[::1:4444",
        "tcp:::1]:4444",
        "tcp:h:1,to=5",
        "tcp:h:1,ipv4=yes",
        "tcp:h:1,ipv4=",
        "tcp:h:1,",
        "tcp:h:1;ipv4",
        "tcp:h:1,ipv4=off,ipv6=off",
        "tcp:[::1]:1,ipv4",
        "tcp:[::1]:1,ipv6=off",
    ],
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(
    "text", ["unix:/run/socket", "unix:@name", "unix:x", "vsock:2:49152", "vsock:any:1", "fd:7", "stdio:", "systemd:"]
)
def test_other_addresses_are_written_as_they_are_read(text: str) -> None:
    assert str(parse_address(text)) == text


def test_an_abstract_name_begins_with_a_zero_byte() -> None:
    assert UnixAddress("@name").sockaddr == "\0name"
    assert UnixAddress("/run/socket").sockaddr == "/run/socket"


@pytest.mark.parametrize("text", ["tcp:127.0.0.1:4444", "tcp:[::1]:4444", "tcp:h:0"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    address = parse_address(text)
    assert isinstance(address, TcpAddress)
    assert str(address) == format_address(address.host, address.port) == text
