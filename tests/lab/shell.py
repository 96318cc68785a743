"""A shell in an emulated arm64 host with /dev/kvm: `python -m tests.lab.shell --suite trixie --cpu neoverse-n1`.

With standard input from elsewhere than a terminal, that is the script which the shell runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import termios
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from tests.lab.host import A57_R1P3, running_host
from tests.lab.images import SUITES, host_image
from tests.lab.qmp import LabError
from tests.lab.remote import HostLostError, RemoteCommand, running_command

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ = 4096


def main() -> int:
    """Build what is asked for, boot, and connect."""
    arguments = _arguments()
    try:
        for suite in [arguments.suite] if arguments.suite else list(SUITES) if arguments.build else ["trixie"]:
            image = host_image(suite, _tell)
            if arguments.build:
                _tell(f"{suite} ({SUITES[suite]}): {image.initrd.parent}")
        return 0 if arguments.build else trio.run(_shell, image.suite, arguments.cpu, arguments.memory)
    except LabError as error:
        _tell(f"lab: {error}")
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.shell", description=(__doc__ or "").partition(":")[0])
    suites = "; ".join(f"{suite}: {what}" for suite, what in SUITES.items())
    parser.add_argument("--suite", choices=list(SUITES), help=f"{suites} (default: trixie; with --build: all)")
    parser.add_argument("--cpu", default=A57_R1P3, help="QEMU's -cpu (default: %(default)s)")
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="RAM (default: %(default)s)")
    parser.add_argument("--build", action="store_true", help="build the images and leave")
    return parser.parse_args()


async def _shell(suite: str, cpu: str, memory_mib: int) -> int:
    _tell(f"booting {suite} ({SUITES[suite]}) on -cpu {cpu}")
    async with running_host(suite=suite, cpu=cpu, memory_mib=memory_mib) as host:
        if not os.isatty(0):
            return await _run_script(host.agent_port)
        columns, rows = shutil.get_terminal_size()
        _tell("a shell on the host; the machine around is 10.0.2.2; leave with exit")
        with _raw_terminal():
            async with running_command(
                host.agent_port, ["sh", "-i"], terminal=(rows, columns), on_output=_write
            ) as command:
                return await _converse(command)


async def _run_script(port: int) -> int:
    async with running_command(port, ["sh"], on_output=_write) as command:
        await command.write(await trio.to_thread.run_sync(sys.stdin.buffer.read))
        await command.end_input()
        try:
            return await command.wait()
        finally:
            sys.stderr.write(command.stderr.decode(errors="replace"))


async def _converse(command: RemoteCommand) -> int:
    async with trio.open_nursery() as nursery:

        async def type_in() -> None:
            while True:
                await trio.lowlevel.wait_readable(0)
                if not (data := os.read(0, _READ)):
                    return
                await command.write(data)

        nursery.start_soon(type_in)
        try:
            return await command.wait()
        except HostLostError:
            return 1  # somebody switched the host off: that is one way to leave
        finally:
            nursery.cancel_scope.cancel()


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


@contextmanager
def _raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
