"""Runs in an emulated host, as root: one command for each connection. `tests.lab.remote` is its other end.

Both sides send frames: a letter, the payload's length (32 bits, big-endian), the payload.

| to the agent |                                                     |
|---|---|
| T            | "rows columns": the command is to get a terminal    |
| A            | argv, NUL after each: starts the command            |
| I            | standard input; empty for its end                   |
| S            | a signal's number, in ASCII                         |

| from the agent |                                                   |
|---|---|
| P            | the command runs: its process id, in ASCII          |
| O, E         | standard output, standard error                     |
| X            | it has ended: exit status in ASCII, or minus a signal |

A command does not outlive its connection, nor do the processes that it left in its session. Only modules that
are cheap to import are used: a host starts with no compiled Python at all, and each import costs it a while.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from _socket import SO_REUSEADDR, SOL_SOCKET, socket

PORT = 7000
READY = "vmstate-lab: ready"
_CHUNK = 1 << 16
_HEADER = 5
_PENDING_LIMIT = 1 << 20


class _Command:
    """The command of one connection."""

    def __init__(self, peer: int) -> None:
        self.peer = peer
        self.received = bytearray()
        self.terminal: tuple[int, int] | None = None
        self.pid = self.input = self.pidfd = -1
        self.outputs: dict[int, bytes] = {}
        self.pending = bytearray()
        self.input_ends = False

    def serve(self) -> None:
        """Carry frames both ways until the command has ended, or the peer is gone."""
        while True:
            poll = select.poll()
            if len(self.pending) < _PENDING_LIMIT:
                poll.register(self.peer, select.POLLIN)
            if self.pidfd >= 0:
                poll.register(self.pidfd, select.POLLIN)
            if self.pending:
                poll.register(self.input, select.POLLOUT)
            for output in self.outputs:
                poll.register(output, select.POLLIN)
            ready = dict(poll.poll())
            for output in [output for output in self.outputs if output in ready]:
                self.copy_output(output)
            if self.input in ready:
                self.feed_input()
            if self.peer in ready and not self.receive():
                return
            if self.pidfd in ready:
                for output in list(self.outputs):
                    os.set_blocking(output, False)
                    while self.copy_output(output):
                        pass
                code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                self.send(b"X", b"%d" % code)
                return

    def send(self, kind: bytes, payload: bytes) -> None:
        frame = memoryview(kind + len(payload).to_bytes(4, "big") + payload)
        while frame:
            frame = frame[os.write(self.peer, frame) :]

    def receive(self) -> bool:
        data = os.read(self.peer, _CHUNK)
        self.received += data
        while len(self.received) >= _HEADER:
            end = _HEADER + int.from_bytes(self.received[1:_HEADER], "big")
            if len(self.received) < end:
                break
            kind, payload = chr(self.received[0]), bytes(self.received[_HEADER:end])
            del self.received[:end]
            if kind == "T":
                rows, columns = payload.split()
                self.terminal = int(rows), int(columns)
            elif kind == "A":
                self.start(payload.split(b"\0")[:-1])
            elif kind == "S":
                os.kill(self.pid, int(payload))
            elif kind == "I":
                self.pending += payload
                self.input_ends |= not payload
                self.feed_input()
        return bool(data)

    def start(self, argv: list[bytes]) -> None:
        if self.terminal is not None:
            import pty  # only people need it

            self.pid, self.input = pty.fork()
            if self.pid == 0:
                rows, columns = self.terminal
                os.system(f"stty rows {rows} cols {columns}")
                _execute(argv)
            self.outputs = {self.input: b"O"}
        else:
            theirs_in, self.input = os.pipe()
            ours_out, theirs_out = os.pipe()
            ours_error, theirs_error = os.pipe()
            self.pid = os.fork()
            if self.pid == 0:
                os.setsid()
                for number, end in enumerate((theirs_in, theirs_out, theirs_error)):
                    os.dup2(end, number)
                _execute(argv)
            for end in (theirs_in, theirs_out, theirs_error):
                os.close(end)
            self.outputs = {ours_out: b"O", ours_error: b"E"}
        os.set_blocking(self.input, self.terminal is not None)
        self.pidfd = os.pidfd_open(self.pid)
        self.send(b"P", b"%d" % self.pid)

    def copy_output(self, output: int) -> bool:
        try:
            data = os.read(output, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last process of the terminal is gone
            data = b""
        if data:
            self.send(self.outputs[output], data)
        else:
            del self.outputs[output]
        return bool(data)

    def feed_input(self) -> None:
        try:
            if self.pending:
                del self.pending[: os.write(self.input, self.pending)]
        except BlockingIOError:
            return
        except OSError:  # the command reads no more
            self.pending.clear()
        if self.input_ends and not self.pending and self.terminal is None and self.input >= 0:
            os.close(self.input)
            self.input = -1


def _execute(argv: list[bytes]) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, argv[0] + b": " + (error.strerror or "cannot be run").encode() + b"\n")
    finally:
        os._exit(127)


def _serve_one(connection: socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    command = _Command(connection.fileno())
    try:
        command.serve()
    finally:
        if command.pid > 0:
            try:  # noqa: SIM105 - contextlib costs 0.1 s for each host
                os.killpg(command.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def main() -> None:
    """Serve for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who serve connections
    listener = socket()
    listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", PORT))
    listener.listen(64)
    print(READY, flush=True)
    while True:
        number, _ = listener._accept()  # type: ignore[attr-defined]
        connection = socket(fileno=number)
        if os.fork() == 0:
            try:
                listener.close()
                _serve_one(connection)
            except OSError as error:
                print(error, file=sys.stderr, flush=True)
            finally:
                os._exit(0)
        connection.close()


if __name__ == "__main__":
    main()
