"""What is refused by name: streams of other kinds, and capabilities that lead out of a plain precopy migration."""

from typing import Final

from formats.records import CommandType

REFUSED_COMMANDS: Final[dict[CommandType, tuple[str, str]]] = {
    CommandType.POSTCOPY_ADVISE: ("postcopy", "turn the capabilities postcopy-ram and dirty-bitmaps postcopy off"),
    CommandType.POSTCOPY_LISTEN: ("postcopy", "turn the capability postcopy-ram off"),
    CommandType.POSTCOPY_RUN: ("postcopy", "turn the capability postcopy-ram off"),
    CommandType.POSTCOPY_RAM_DISCARD: ("postcopy", "turn the capability postcopy-ram off"),
    CommandType.PACKAGED: ("postcopy", "turn the capability postcopy-ram off"),
    CommandType.POSTCOPY_RESUME: ("postcopy recovery", "turn the capability postcopy-ram off"),
    CommandType.RECV_BITMAP: ("postcopy recovery", "turn the capability postcopy-ram off"),
    CommandType.ENABLE_COLO: ("COLO", "turn the capability x-colo off"),
}
"""Commands that lead out of precopy; refused where they are announced, while the source still has its guest."""

REFUSED_CAPABILITIES: Final[dict[str, str]] = {
    "mapped-ram": "it is for files; turn the capability mapped-ram off",
    "multifd": "turn the capability multifd off",
}

FOREIGNERS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (
        b"\x16\x03",
        "a TLS handshake",
        "set tls-creds to the empty string on both QEMUs, or take TLS off before the proxy",
    ),
    (b"\x11\x22\x33\x44", "a multifd channel", "turn the capability multifd off"),
    (b"LibvirtQemudSave", "a libvirt save file", "give it as a file, not through a pipe"),
    (b"\xfd7zXZ", "xz-compressed data", "decompress it first"),
    (b"\x1f\x8b", "gzip-compressed data", "decompress it first"),
    (b"(\xb5/\xfd", "zstd-compressed data", "decompress it first"),
)
"""How streams begin that are no main channel of a migration: first bytes, what they are, the way out."""
