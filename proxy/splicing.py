"""Passing bytes on from socket to socket without looking at them: they stay in the kernel (splice(2)).

Each way has a thread of its own while it has bytes: all that it does is done by the kernel, so that several run side by
side, and none waits for its turn in trio's loop.
"""

import errno
import fcntl
import math
import os
import select
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from proxy.connection import acknowledge
from proxy.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.connection import SocketConnection

_PIPE: Final = 1 << 20
"""Bytes in the pipe between: the most that everyone may ask for (pipe-max-size of proc(5)), as it is by default."""

_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_THREADS: Final = trio.CapacityLimiter(math.inf)


async def splice_on(
    here: "SocketConnection", there: "SocketConnection", on_bytes: "Callable[[int], None]" = lambda _: None
) -> bool:
    """Pass bytes on to the end of `here`, which is not carried over.

    Args:
        here: Where they come from.
        there: Where they go.
        on_bytes: Is told how many have gone on, each time, in another thread.

    Returns:
        False, and nothing has been passed on, if the kernel cannot do this with such sockets.

    Raises:
        PeerError: One of the two broke.
    """
    await trio.lowlevel.wait_readable(here.socket)  # many a way has nothing to carry, and needs no thread
    with _Stop() as stop, _pipe() as (inlet, outlet):
        way = _Way(here, there, inlet, outlet, stop)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop.when_cancelled)
            came = await trio.to_thread.run_sync(way.run, on_bytes, limiter=_THREADS)
            nursery.cancel_scope.cancel()
    await trio.lowlevel.checkpoint_if_cancelled()  # a thread that was stopped has not come to the end
    if isinstance(came, PeerError):
        raise came
    return came


class _Stop:
    """Tells a thread to stop, also while it waits."""

    def __init__(self) -> None:
        self.called = False
        self._event = os.eventfd(0, os.EFD_CLOEXEC)

    def __enter__(self) -> "_Stop":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._event)

    async def when_cancelled(self) -> None:
        """Call it when this is cancelled."""
        try:
            await trio.sleep_forever()
        finally:
            self.called = True
            os.eventfd_write(self._event, 1)

    def waiter(self, file: int, event: int) -> select.poll:
        """Make what waits for an event of a file, or for the call."""
        waiter = select.poll()
        waiter.register(file, event)
        waiter.register(self._event, select.POLLIN)
        return waiter


class _Way:
    """Carries bytes one way; all of it happens in a thread."""

    def __init__(
        self, here: "SocketConnection", there: "SocketConnection", inlet: int, outlet: int, stop: _Stop
    ) -> None:
        self._here = here
        self._there = there
        self._pipe = inlet, outlet
        self._files = here.socket.fileno(), there.socket.fileno()
        self._stop = stop

    def run(self, on_bytes: "Callable[[int], None]") -> bool | PeerError:
        """Carry bytes to the end of `here`, or until it is told to stop.

        Returns:
            What `splice_on` returns or raises.
        """
        (source, target), (inlet, outlet), stop = self._files, self._pipe, self._stop
        readable, writable = stop.waiter(source, select.POLLIN), stop.waiter(target, select.POLLOUT)
        side, passed = self._here, False
        # Little is done between the calls: each of them gives the interpreter's lock away, and takes it again.
        try:
            while not stop.called:
                side = self._here
                try:
                    length = os.splice(source, inlet, _PIPE, flags=_FLAGS)
                except BlockingIOError:
                    readable.poll()
                    continue
                if not length:
                    break
                acknowledge(side.socket, length)
                side, left, passed = self._there, length, True
                while left and not stop.called:
                    try:
                        left -= os.splice(outlet, target, left, flags=_FLAGS)
                    except BlockingIOError:
                        writable.poll()
                on_bytes(length)
        except OSError as error:
            return False if error.errno == errno.EINVAL and not passed else side.broken(error)
        return True


@contextmanager
def _pipe() -> "Iterator[tuple[int, int]]":
    """Open a pipe: the end that is written to, and the one that is read from."""
    outlet, inlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # less will do
            fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, _PIPE)
        yield inlet, outlet
    finally:
        os.close(inlet)
        os.close(outlet)
