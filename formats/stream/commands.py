"""COMMAND: be16 command, be16 length, payload; those that cannot be carried are refused by name.

Source: QEMU `migration/savevm.c` (`qemu_savevm_command_send`, `loadvm_process_command`).
"""

from formats.errors import UnsupportedFeatureError
from formats.frame.records import COMMAND, CommandType, read
from formats.stream.broken import unsupported
from formats.stream.refusals import REFUSED_COMMANDS


def read_command(data: memoryview, offset: int) -> tuple[CommandType, bytes, int] | None:
    """Read the record at the start of `data`.

    Args:
        data: The bytes at hand.
        offset: Where they begin in the stream; used in errors only.

    Returns:
        The command, its payload, and the record's size in bytes; None when it is not all there.

    Raises:
        UnsupportedFeatureError: It is not known, or it is refused.
    """
    found = read(COMMAND, data, offset)
    if found is None:
        return None
    record, size = found
    try:
        command = CommandType(record.command)
    except ValueError:
        raise UnsupportedFeatureError(f"command {record.command} is not known", offset=offset) from None
    if command in REFUSED_COMMANDS:
        raise unsupported(*REFUSED_COMMANDS[command], offset)
    return command, record.payload, size
