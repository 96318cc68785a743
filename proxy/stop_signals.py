"""Signals: SIGTERM and SIGINT, which end the listening, and SIGHUP. They wait until somebody can obey them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_WAITING: Final = (*STOP_SIGNALS, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[None]:
    """Let them wait for the length of a `with`, or until `let_come`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITING)
    try:
        yield
    finally:
        let_come()


def let_come() -> None:
    """Let those come that have waited, and the next ones at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITING)


def outlive_the_terminal() -> None:
    """Go on when the terminal is closed (SIGHUP): a migration under way is worth more than its witness."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
