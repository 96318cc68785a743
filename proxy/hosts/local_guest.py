"""Which guest waits at an address of this host: its name and UUID, as its QEMU was started with them.

Source: QEMU `qemu-options.hx` (`-name`, `-uuid`); libvirt gives both to every guest.
"""

from itertools import pairwise
from typing import Final, NamedTuple

from proxy.hosts.started_qemu import words_of


class Guest(NamedTuple):
    """A guest, as far as it is known.

    Attributes:
        name: Its name; None where it is not known.
        uuid: Its UUID, as `9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d`; None where it is not known.
    """

    name: str | None = None
    uuid: str | None = None


UNKNOWN: Final = Guest()


def local_guest(host: str, port: int) -> Guest:
    """Return the guest whose QEMU listens at a TCP address; nothing is known of one on another host.

    Args:
        host: The address, as a number.
        port: The port.
    """
    found = words_of(host, port)
    return UNKNOWN if found is None else parse_guest(found[1])


def parse_guest(words: list[str]) -> Guest:
    """Read a QEMU's command line."""
    name = uuid = None
    for word, value in pairwise(words):
        match word.replace("--", "-", 1):
            case "-name":
                name = _name(value)
            case "-uuid":
                uuid = value.lower()
    return Guest(name, uuid)


def _name(value: str) -> str | None:
    """Return the name in `-name`'s value: `guest=NAME,...` or `NAME,...`; a comma in it is written twice."""
    for text in value.replace(",,", "\0").split(","):
        key, equals, rest = text.partition("=")
        if not equals or key == "guest":
            return (rest if equals else key).replace("\0", ",") or None
    return None
