"""Passing bytes on from socket to socket without looking at them: they stay in the kernel (splice(2)).

All that it does is done by the kernel, so it is carried by threads: as many as there are processors, each with several
ways, and none of them waits for its turn in trio's loop.
"""

import errno
import fcntl
import os
import select
import time
from _thread import start_new_thread
from collections import deque
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import trio

from proxy.net.connection import acknowledge

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.net.connection import SocketConnection

_PIPE: Final = 1 << 20
"""Bytes in the pipe between: the most that everyone may ask for (pipe-max-size of proc(5)), as it is by default."""

_LOOKS: Final = 0.5
"""Seconds after which a way that is to end is looked at."""

_MEMORY_WAIT: Final = 0.1
"""Seconds until a thread that found no memory looks again."""

_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


async def splice_on(
    here: "SocketConnection", there: "SocketConnection", on_bytes: "Callable[[int], None]" = lambda _: None
) -> bool:
    """Pass bytes on to the end of `here`, which is not carried over.

    Args:
        here: Where they come from.
        there: Where they go.
        on_bytes: Is told how many have gone on, each time, in another thread.

    Returns:
        False, and nothing has been passed on, if the kernel cannot do this with such sockets, or lacks descriptors or a
        thread for it just now.

    Raises:
        PeerError: One of the two broke.
    """
    await trio.lowlevel.wait_readable(here.socket)  # many a way has nothing to carry, and needs no thread
    ended, token = trio.Event(), trio.lowlevel.current_trio_token()
    with ExitStack() as stack:
        try:
            way = stack.enter_context(_Way(here, there, on_bytes, lambda: token.run_sync_soon(ended.set)))
            carrier = min(_CARRIERS, key=lambda one: one.load)
            carrier.begin(way)
        except (OSError, RuntimeError, MemoryError):
            return False
        try:
            await ended.wait()
        finally:
            carrier.stop(way)
            with trio.CancelScope(shield=True):
                while not way.told:  # where memory was short, trio may bring no more word from threads
                    with trio.move_on_after(_LOOKS):
                        await ended.wait()
    if way.problem is not None:
        raise way.problem
    return way.possible


class _Way:
    """Carries bytes one way; all but the beginning and the end of it happens in a carrier's thread.

    Attributes:
        source: Where the bytes come from; a duplicate, as both ways of a connection may have the same carrier.
        target: Where they go, likewise.
        possible: Whether the kernel can do it with such sockets.
        problem: What ended it before its time.
        over: Whether it is carried no more.
        told: Whether that was told.
    """

    def __init__(
        self,
        here: "SocketConnection",
        there: "SocketConnection",
        on_bytes: "Callable[[int], None]",
        say_ended: "Callable[[], None]",
    ) -> None:
        self.possible = True
        self.problem: Exception | None = None
        self.over = False
        self._say_ended = say_ended
        self.told = False
        self._here = here
        self._there = there
        self._on_bytes = on_bytes
        self._awaited: int | None = None
        self._filled = 0
        self._left = 0

    def __enter__(self) -> "_Way":
        with ExitStack() as files:
            self.source, self.target = (
                _opened(files, os.dup(end.socket.fileno())) for end in (self._here, self._there)
            )
            self._outlet, self._inlet = (_opened(files, file) for file in os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
            self._files = files.pop_all()
        with suppress(OSError):  # less will do
            fcntl.fcntl(self._inlet, fcntl.F_SETPIPE_SZ, _PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def step(self, waiter: select.epoll) -> bool:
        """Move what can be moved at once, and have `waiter` look out for what comes next.

        Returns:
            Whether there may be more to come.
        """
        side = self._there
        try:
            if not self._left:
                side = self._here
                if not self._fill():
                    return False
                side = self._there
            while self._left:
                self._left -= os.splice(self._outlet, self.target, self._left, flags=_FLAGS)
            self._on_bytes(self._filled)
        except BlockingIOError:
            """Nothing has come, or the target takes no more just now."""
        except OSError as error:
            if error.errno == errno.EINVAL and not self._filled:
                self.possible = False
            else:
                self.problem = side.broken(error)
            return False
        self.look_out(waiter)
        return True

    def _fill(self) -> int:
        length = os.splice(self.source, self._inlet, _PIPE, flags=_FLAGS)
        if length:
            acknowledge(self._here.socket, length)
            self._left = self._filled = length
        return length

    def tell(self) -> None:
        """Tell that it is carried no more."""
        if not self.told:
            self._say_ended()
            self.told = True

    def look_out(self, waiter: select.epoll) -> None:
        """Have `waiter` look out for the one file that this waits for."""
        awaited = self.target if self._left else self.source
        if awaited != self._awaited:
            self.look_away(waiter)
            waiter.register(awaited, select.EPOLLOUT if self._left else select.EPOLLIN)
            self._awaited = awaited

    def look_away(self, waiter: select.epoll) -> None:
        """Have `waiter` look out for nothing of it any more."""
        if self._awaited is not None:
            waiter.unregister(self._awaited)
            self._awaited = None


class _Carrier:
    """Carries ways in a thread, which lives as long as the process."""

    def __init__(self) -> None:
        self._started = False
        self._orders: deque[tuple[bool, _Way]] = deque()
        self._ways: dict[int, _Way] = {}

    @property
    def load(self) -> int:
        """How many ways it carries, or is about to."""
        return len(self._ways) // 2 + len(self._orders)

    def start(self) -> None:
        """Start the thread, if there is none."""
        if self._started:
            return
        with ExitStack() as files:  # nothing is left where one of them cannot be had
            self._waiter = files.enter_context(select.epoll())
            self._bell = _opened(files, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._waiter.register(self._bell, select.EPOLLIN)
            # Not threading.Thread: it waits until the thread runs, for ever where that finds no memory to begin with.
            start_new_thread(self._run, ())
            files.pop_all()
            self._started = True

    def begin(self, way: _Way) -> None:
        """Carry a way; it is told when it is not carried any more, to its end or not."""
        self.start()
        self._order(way, begins=True)

    def stop(self, way: _Way) -> None:
        """Carry a way no more."""
        self._order(way, begins=False)

    def _order(self, way: _Way, *, begins: bool) -> None:
        self._orders.append((begins, way))
        os.eventfd_write(self._bell, 1)

    def _run(self) -> None:
        while True:
            try:
                self._turn()
            except MemoryError:  # all ways go on when there is some again
                time.sleep(_MEMORY_WAIT)
                os.eventfd_write(self._bell, 1)  # so that the next turn does what this one did not come to

    def _turn(self) -> None:
        for file, _ in self._waiter.poll():
            if file == self._bell:
                self._obey()
            elif (way := self._ways.get(file)) is not None and not self._step(way):
                self._end(way)

    def _obey(self) -> None:
        os.eventfd_read(self._bell)
        while self._orders:
            begins, way = self._orders[0]
            if begins:
                self._ways[way.source] = self._ways[way.target] = way
                way.look_out(self._waiter)
            else:
                self._end(way)
            self._orders.popleft()
        for way in [way for way in self._ways.values() if way.over]:
            self._end(way)

    def _step(self, way: _Way) -> bool:
        try:
            return way.step(self._waiter)
        except Exception as error:  # one way's trouble must not end the others
            way.problem = error
            return False

    def _end(self, way: _Way) -> None:
        """End a way and tell it, once; whatever of this finds no memory is done again."""
        way.over = True
        way.look_away(self._waiter)  # who is told finds nothing left open
        way.tell()
        for file in (way.source, way.target):
            if self._ways.get(file) is way:
                del self._ways[file]


def _opened(files: ExitStack, file: int) -> int:
    """Have a file closed with the others."""
    files.callback(os.close, file)
    return file


_CARRIERS: Final = tuple(_Carrier() for _ in range(os.cpu_count() or 1))


def start_carriers() -> None:
    """Start the threads, so that none has to begin when memory is short; what is missing comes later."""
    with suppress(OSError, RuntimeError, MemoryError):
        for carrier in _CARRIERS:
            carrier.start()
