"""What an NBD client says first, where it has the rest of the connection encrypted.

Source: NBD `doc/proto.md`, "Fixed newstyle negotiation" and NBD_OPT_STARTTLS; QEMU `nbd/client.c`
(`nbd_receive_starttls`), which asks for TLS before anything else.
"""

from typing import Final

from construct import Bytes, Int32ub, Struct

CLIENT_OPENING: Final = Struct(
    "flags" / Int32ub,
    "magic" / Bytes(8),
    "option" / Int32ub,
    "length" / Int32ub,
)
"""The client's flags, and the header of its first option; all in network order."""

_OPTION_MAGIC: Final = b"IHAVEOPT"
_STARTTLS: Final = 5


def asks_for_tls(opening: bytes) -> bool:
    """Tell whether a client that begins so sends nothing more in plain text, if the server agrees.

    Args:
        opening: What it has sent: `CLIENT_OPENING`, or less where it left earlier.
    """
    if len(opening) < CLIENT_OPENING.sizeof():
        return False
    first = CLIENT_OPENING.parse(opening)
    return bool(first.magic == _OPTION_MAGIC and first.option == _STARTTLS and first.length == 0)
