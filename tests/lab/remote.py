"""Commands in an emulated host: the near end of `tests.lab.agent`.

RemoteError (a LabError)
├── HostLostError        the connection ended before the command did
└── CommandFailedError   a command that had to succeed did not
"""

from __future__ import annotations

import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tests.lab.qmp import LabError

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Callable, Sequence

_HEADER = struct.Struct(">cI")
_RECEIVE = 1 << 16
_STDIN_CHUNK = 1 << 16
_START_TIMEOUT = 60.0
_KILL_TIMEOUT = 20.0


class RemoteError(LabError):
    """A command in a host went wrong."""


class HostLostError(RemoteError):
    """The connection to the host ended before the command did."""


class CommandFailedError(RemoteError):
    """A command that had to succeed did not.

    Attributes:
        command: what it was and said.
    """

    def __init__(self, command: CompletedCommand) -> None:
        said = (command.stderr or command.stdout).strip() or "(nothing on standard error)"
        super().__init__(f"{' '.join(command.argv)} in a host: exit status {command.returncode}: {said}")
        self.command = command


@dataclass(frozen=True, slots=True)
class CompletedCommand:
    """A command that has ended.

    Attributes:
        argv: program and arguments.
        returncode: exit status, or minus a signal.
        output: standard output, as bytes.
        stderr: standard error.
    """

    argv: tuple[str, ...]
    returncode: int
    output: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        """Standard output as text."""
        return self.output.decode(errors="replace")


class RemoteCommand:
    """A command that runs in a host. Get it from `running_command`.

    Attributes:
        stdout: what it wrote on standard output so far, unless a listener takes it.
        stderr: the same of standard error.
    """

    def __init__(self, stream: trio.SocketStream, on_output: Callable[[bytes], None] | None) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._stream = stream
        self._on_output = on_output or self.stdout.extend
        self._turn = trio.Lock()
        self._started = trio.Event()
        self._ended = trio.Event()

    async def wait(self) -> int:
        """Wait for the end and return the returncode.

        Raises:
            HostLostError: the host is gone, or refused the command.
        """
        await self._ended.wait()
        if self.returncode is None:
            raise HostLostError("the connection to the host ended before the command did")
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, some time soon."""
        trio.lowlevel.spawn_system_task(self.send, b"S", b"%d" % number)

    async def write(self, data: bytes) -> None:
        """Give the command data on standard input."""
        for at in range(0, len(data), _STDIN_CHUNK):
            await self.send(b"I", data[at : at + _STDIN_CHUNK])

    async def end_input(self) -> None:
        """Tell the command that standard input ends."""
        await self.send(b"I", b"")

    async def send(self, kind: bytes, payload: bytes) -> None:
        """Send a frame; nothing happens if the command has ended."""
        async with self._turn:
            # The reader says what happened.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_all(_HEADER.pack(kind, len(payload)) + payload)

    async def start(self, argv: Sequence[str], terminal: tuple[int, int] | None) -> None:
        """Start the command, and wait until it has a process id."""
        # Not in a nursery of `running_command`: that would wrap each error of its body in an exception group.
        trio.lowlevel.spawn_system_task(self._read_frames)
        if terminal is not None:
            await self.send(b"T", b"%d %d" % terminal)
        await self.send(b"A", b"".join(word.encode() + b"\0" for word in argv))
        with trio.move_on_after(_START_TIMEOUT):
            await self._started.wait()
        if not self.pid:
            raise HostLostError(f"the host did not start {argv[0]}")

    async def _read_frames(self) -> None:
        unread = bytearray()
        try:
            while self.returncode is None and (data := await self._stream.receive_some(_RECEIVE)):
                unread += data
                while len(unread) >= _HEADER.size:
                    kind, length = _HEADER.unpack_from(unread)
                    end = _HEADER.size + length
                    if len(unread) < end:
                        break
                    self._take(kind, bytes(unread[_HEADER.size : end]))
                    del unread[:end]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._started.set()
            self._ended.set()

    def _take(self, kind: bytes, payload: bytes) -> None:
        match kind:
            case b"P":
                self.pid = int(payload)
                self._started.set()
            case b"O":
                self._on_output(payload)
            case b"E":
                self.stderr += payload
            case b"X":
                self.returncode = int(payload)
            case _:
                raise RemoteError(f"not a frame of the agent: {kind!r}")


@asynccontextmanager
async def running_command(
    port: int,
    argv: Sequence[str],
    *,
    terminal: tuple[int, int] | None = None,
    on_output: Callable[[bytes], None] | None = None,
) -> AsyncIterator[RemoteCommand]:
    """Run a command in a host for the length of an `async with`; what still runs at its end is killed.

    Args:
        port: where the host's agent is, on the loopback.
        argv: program and arguments.
        terminal: rows and columns of a terminal to run it in; then all output is standard output.
        on_output: takes standard output as it comes.
    """
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        command = RemoteCommand(stream, on_output)
        await command.start(argv, terminal)
        try:
            yield command
        finally:
            with trio.move_on_after(_KILL_TIMEOUT, shield=True):
                if command.returncode is None:
                    await command.send(b"S", b"9")
                    await command._ended.wait()


async def run_command(port: int, argv: Sequence[str], stdin: bytes = b"") -> CompletedCommand:
    """Run a command to its end."""
    async with running_command(port, argv) as command:
        await command.write(stdin)
        await command.end_input()
        code = await command.wait()
    return CompletedCommand(tuple(argv), code, bytes(command.stdout), command.stderr.decode(errors="replace"))
