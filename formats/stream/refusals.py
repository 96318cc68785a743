"""What is refused by name: streams of other kinds, and what leads to where a guest's registers cannot be judged."""

from typing import Final

from formats.frame.records import CommandType

COLO: Final = ("COLO", "turn the capability x-colo off")

COLO_CHECKPOINT: Final = (1).to_bytes(4)
"""What follows the end of a stream with COLO, as be32: the primary's first request for a checkpoint. Some QEMUs, such
as 11.1, say nothing of COLO before. Source: QEMU `qapi/migration.json` (`COLOMessage`), `migration/colo.c`."""

REFUSED_COMMANDS: Final[dict[CommandType, tuple[str, str]]] = {
    CommandType.POSTCOPY_LISTEN: ("postcopy without a package", "no QEMU sends that"),
    CommandType.POSTCOPY_RUN: ("postcopy without a package", "no QEMU sends that"),
    CommandType.POSTCOPY_RESUME: ("postcopy recovery on a connection that began otherwise", "no QEMU sends that"),
    CommandType.RECV_BITMAP: ("postcopy recovery on a connection that began otherwise", "no QEMU sends that"),
    CommandType.ENABLE_COLO: COLO,
}
"""Commands that lead to where nothing can be judged; refused while the source still has its guest."""

REFUSED_CAPABILITIES: Final[dict[str, str]] = {
    "mapped-ram": "it is for files; turn the capability mapped-ram off",
    "multifd": "turn the capability multifd off",
}

TLS_OPENING: Final = b"\x16\x03"
"""The first bytes of a TLS handshake: record type 22, major version 3. Source: RFC 8446, section 5.1."""

FOREIGNERS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (
        TLS_OPENING,
        "a TLS handshake",
        "let the proxy end it: run --listen-tls DIR --connect-tls DIR",
    ),
    (b"\x11\x22\x33\x44", "a multifd channel", "turn the capability multifd off"),
    (b"LibvirtQemudSave", "a libvirt save file", "give it as a file, not through a pipe"),
    (b"QFI\xfb", "a qcow2 image", "name a snapshot in it: qcow2:IMAGE,snapshot=NAME"),
    (b"\xfd7zXZ", "xz-compressed data", "decompress it first"),
    (b"\x1f\x8b", "gzip-compressed data", "decompress it first"),
    (b"(\xb5/\xfd", "zstd-compressed data", "decompress it first"),
)
"""How streams begin that are no main channel of a migration: first bytes, what they are, the way out."""
