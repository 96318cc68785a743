"""How many descriptors the process may have."""

import resource
from contextlib import suppress


def take_all() -> None:
    """Raise the soft limit, often 1024, to the hard one: a multifd channel takes up to ten (two sockets, two pipes)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a hard limit above fs.nr_open cannot be set again
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
