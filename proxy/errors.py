"""Errors of the proxy itself, and the exit codes that the commands end with."""

import enum

from formats.errors import FormatError, MalformedStreamError


class ExitCode(enum.IntEnum):
    """What the exit status of every command says."""

    OK = 0
    FAILED = 1
    """Something outside broke: a connection, a file, a peer that gave up."""
    USAGE = 2
    """The command line, a profile or a policy is wrong."""
    MALFORMED = 3
    """The stream is broken, cut short, or no migration stream."""
    REFUSED = 4
    """The stream may be sound, but the policy or this program does not let it pass."""
    NOT_JUDGED = 5
    """Nothing was judged: there is no arm64 vCPU in the stream."""


class ProxyError(Exception):
    """An error with one line for the operator and an exit code.

    ProxyError
    +-- ConfigError    a profile, a policy or an address is wrong
    +-- RefusedError   the policy does not let the guest pass
    +-- PeerError      a connection broke, or a peer gave up
    """

    exit_code = ExitCode.FAILED


class ConfigError(ProxyError):
    """A file or an option that says what to do is wrong; the message names it, and the key."""

    exit_code = ExitCode.USAGE


class RefusedError(ProxyError):
    """The guest may not pass as things are; the message says what differs, and what would let it pass."""

    exit_code = ExitCode.REFUSED


class PeerError(ProxyError):
    """A peer could not be reached, or ended the connection before its time.

    Attributes:
        peer: `source` or `destination`.
    """

    def __init__(self, peer: str, message: str) -> None:
        super().__init__(f"the {peer} {message}")
        self.peer = peer


def unforeseen(error: Exception) -> str:
    """Say what an error is that nobody has foreseen, or that any line may raise."""
    if isinstance(error, MemoryError):
        return "there is no memory left for it on the proxy's host"
    return f"internal error, please report it: {error!r}"


def exit_code_of(error: FormatError | ProxyError) -> ExitCode:
    """Return the exit code for an error of the proxy's own, or of a stream that cannot be read on."""
    if isinstance(error, ProxyError):
        return error.exit_code
    return ExitCode.MALFORMED if isinstance(error, MalformedStreamError) else ExitCode.REFUSED
