"""Passing bytes on from socket to socket without looking at them: they stay in the kernel (splice(2))."""

import errno
import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.connection import SocketConnection

_PIPE: Final = 1 << 20
"""Bytes in the pipe between: the most that everyone may ask for (pipe-max-size of proc(5)), as it is by default."""

_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


async def splice_on(
    here: "SocketConnection", there: "SocketConnection", on_bytes: "Callable[[int], None]" = lambda _: None
) -> bool:
    """Pass bytes on to the end of `here`, which is not carried over.

    Args:
        here: Where they come from.
        there: Where they go.
        on_bytes: Is told how many have gone on, each time.

    Returns:
        False, and nothing has been passed on, if the kernel cannot do this with such sockets.

    Raises:
        PeerError: One of the two broke.
    """
    inlet, outlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)[::-1]
    try:
        with suppress(OSError):  # less will do
            fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, _PIPE)
        passed = False
        while True:
            with here.translated():
                try:
                    length = await _splice(here.socket.fileno(), inlet, _PIPE, here.socket)
                except OSError as error:
                    if error.errno == errno.EINVAL and not passed:
                        return False
                    raise
            if not length:
                return True
            passed = True
            with there.translated():
                left = length
                while left:
                    left -= await _splice(outlet, there.socket.fileno(), left, there.socket)
            on_bytes(length)
    finally:
        os.close(inlet)
        os.close(outlet)


async def _splice(source: int, target: int, most: int, sock: trio.socket.SocketType) -> int:
    """Splice once, when the socket, which is one of the two, is ready for it."""
    await trio.lowlevel.checkpoint_if_cancelled()
    while True:
        try:
            length = os.splice(source, target, most, flags=_FLAGS)
        except BlockingIOError:
            if source == sock.fileno():
                await trio.lowlevel.wait_readable(sock)
            else:
                await trio.lowlevel.wait_writable(sock)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return length
