"""Which guest waits at an address, by its QEMU's command line."""

from __future__ import annotations

import socket

import pytest

from proxy.hosts.local_guest import Guest, local_guest, parse_guest

UUID = "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d"


@pytest.mark.parametrize(
    ("words", "guest"),
    [
        (["-name", "guest=web1,debug-threads=on", "-uuid", UUID], Guest("web1", UUID)),
        (["-name", "web1"], Guest("web1")),
        (["--name", "web1,process=qemu:web1", "--uuid", UUID.upper()], Guest("web1", UUID)),
        (["-name", "debug-threads=on,guest=a,,b"], Guest("a,b")),
        (["-name", ""], Guest()),
        (["-name"], Guest()),
        (["-M", "virt"], Guest()),
    ],
)
def test_command_lines(words: list[str], guest: Guest) -> None:
    assert parse_guest(["/usr/bin/qemu-system-aarch64", *words]) == guest


def test_nothing_is_known_of_what_is_no_qemu_or_not_here() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert local_guest("127.0.0.1", listener.getsockname()[1]) == Guest()
    assert local_guest("192.0.2.1", 49152) == Guest()
