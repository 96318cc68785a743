"""QEMU's locks on image files: nobody changes what a QEMU has open, and no QEMU opens what is being changed.

QEMU locks byte 100 + n of a file where it uses permission n, and 200 + n where it lets nobody else use it; whoever
opens the file looks at the others' locks (Linux' open file description locks).
Source: QEMU `block/file-posix.c` (`RAW_LOCK_PERM_BASE`, `raw_apply_lock_bytes`, `raw_check_lock_bytes`).
"""

import fcntl
import os
import struct
from typing import Final

from proxy.errors import ProxyError

_USES: Final = 100
_SHARES_NOT: Final = 200
_READ: Final = 0
_WRITE: Final = 1
_RESIZE: Final = 3
_FLOCK: Final = struct.Struct("hhqqi4x")
"""struct flock with 64-bit offsets: l_type, l_whence, l_start, l_len, l_pid."""


def lock_as_qemu(file: int, *, update: bool) -> None:
    """Lock a file as a QEMU would that reads it, or writes to it; it is unlocked when it is closed.

    Where the file system has no such locks, nothing is done, as in QEMU.

    Raises:
        ProxyError: A QEMU has it open otherwise than that goes together.
    """
    uses = (_READ, _WRITE, _RESIZE) if update else (_READ,)
    shares_not = (_WRITE, _RESIZE)
    try:
        for byte in (*(_USES + one for one in uses), *(_SHARES_NOT + one for one in shares_not)):
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    except OSError:
        return
    for byte in (*(_SHARES_NOT + one for one in uses), *(_USES + one for one in shares_not)):
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
        if kind != fcntl.F_UNLCK:
            raise ProxyError("a QEMU has it open; stop that, or work on a copy")
