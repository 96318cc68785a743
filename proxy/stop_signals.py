"""The signals that end the listening: SIGTERM and SIGINT, which wait until somebody can obey them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def held_back() -> Iterator[None]:
    """Let them wait for the length of a `with`, or until `let_come`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        let_come()


def let_come() -> None:
    """Let those come that have waited, and the next ones at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
