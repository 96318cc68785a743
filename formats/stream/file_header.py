"""How a migration stream begins, and what begins otherwise.

Source: QEMU `migration/savevm.c` (`qemu_savevm_state_header`).
"""

from formats.errors import EncryptedStreamError, ForeignStreamError, MalformedStreamError
from formats.frame.records import FILE_HEADER, FILE_VERSION, HEADER_SIZE, MAGIC, read
from formats.stream.refusals import FOREIGNERS, TLS_OPENING


def read_file_header(data: memoryview, *, ended: bool) -> int | None:
    """Read `QEVM` and the be32 version, 3, at the start of a stream.

    Args:
        data: The bytes that are there so far.
        ended: Whether no more come.

    Returns:
        The header's length in bytes; None when `data` ends before it does.

    Raises:
        ForeignStreamError: This is no migration stream, or one in TLS (EncryptedStreamError).
        MalformedStreamError: It is one of another version.
    """
    start = bytes(data[:16])
    if start and not MAGIC.startswith(start[:4]):
        for magic, what, advice in FOREIGNERS:
            if start.startswith(magic):
                error = EncryptedStreamError if magic == TLS_OPENING else ForeignStreamError
                raise error(f"this is {what}, not a migration stream", offset=0, advice=advice)
        open_question = len(start) < len(MAGIC) or any(magic.startswith(start) for magic, _, _ in FOREIGNERS)
        if ended or not open_question:
            raise ForeignStreamError(
                f"this is no migration stream: it begins with {start[:4].hex(' ')}, not with 'QEVM'", offset=0
            )
    found = read(FILE_HEADER, data, 0) if MAGIC.startswith(start[:4]) else None
    if found is None:
        return None
    header, size = found
    if header.version != FILE_VERSION:
        raise MalformedStreamError(f"stream version {header.version}; only {FILE_VERSION} is known", offset=4)
    return size


def tells_what_it_is(opening: memoryview) -> bool:
    """Tell whether a connection's first bytes are enough: a migration's whole header, or something else's start."""
    return len(opening) >= HEADER_SIZE or not MAGIC.startswith(bytes(opening[: len(MAGIC)]))
