"""What a command holds while it runs, and what it leaves when it is terminated."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from formats.stream.events import SectionBegin
from tests.proxy.cli.command_line import ALLOWED, SMP2
from tests.proxy.helpers import ROOT, capture, events, short

PEAK = """
import sys
from proxy.cli import main
try:
    main()
finally:
    with open("/proc/self/status") as status:
        print(next(line for line in status if line.startswith("VmHWM")), file=sys.stderr, end="")
"""
"""The peak of its own address space; ru_maxrss would count that of this process, which it was forked from."""


def part_of_full_pages() -> bytes:
    """A PART section of 1 MiB of the guest's memory, page by page."""
    block = b"\x0dmach-virt.ram"
    page = os.urandom(4096)
    first = struct.pack(">Q", 8) + block + page
    more = b"".join(struct.pack(">Q", 4096 * number | 0x28) + page for number in range(1, 256))
    return b"\x02\0\0\0\x01" + first + more + struct.pack(">Q", 0x10) + b"\x7e\0\0\0\x01"


@pytest.mark.parametrize("command", [["rewrite", "-", "/dev/null", *ALLOWED], ["inspect", "-", "--json"]], ids=" ".join)
def test_memory_does_not_grow_with_the_stream(command: list[str]) -> None:
    stream, part, parts = short(SMP2), part_of_full_pages(), 300
    end = next(event.offset for event in events(stream) if isinstance(event, SectionBegin) and event.type == 3)
    with subprocess.Popen(
        [sys.executable, "-c", PEAK, *command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        with contextlib.closing(process.stdin):
            process.stdin.write(stream[:end])
            for _ in range(parts):
                process.stdin.write(part)
            process.stdin.write(stream[end:])
        process.stdin = None
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    peak = re.search(rb"VmHWM:\s+(\d+) kB", err)
    assert peak
    assert int(peak[1]) < 80 << 10
    if out:
        assert json.loads(out)["length"] == len(stream) + parts * len(part)
    else:
        assert f"{len(stream) + parts * len(part)} bytes in".encode() in err


def test_a_rewrite_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "proxy", "rewrite", "-", str(tmp_path / "out"), *ALLOWED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(capture(SMP2)[:100_000])
        process.stdin.flush()
        deadline = time.monotonic() + 10
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(tmp_path.iterdir())
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_connections_that_say_nothing_take_little() -> None:
    """A buffer of 1 MiB is for who has something to say."""
    options = ("--listen", "tcp:127.0.0.1:0", "--connect", "tcp:127.0.0.1:1", "--midr", "0x411fd070")
    with (
        subprocess.Popen([sys.executable, "-m", "proxy", "run", *options], cwd=ROOT, stderr=subprocess.PIPE) as process,
        ExitStack() as opened,
    ):
        opened.callback(process.terminate)
        assert process.stderr is not None
        listening = re.search(rb"listening on tcp:127\.0\.0\.1:(\d+)", process.stderr.readline())
        assert listening
        silent = [socket.create_connection(("127.0.0.1", int(listening[1]))) for _ in range(400)]
        for one in silent:
            opened.enter_context(one)
        # The last one is taken when it is told of.
        silent.pop().close()
        assert b"left without a word" in process.stderr.readline()
        resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        assert resident
        assert int(resident[1]) < 100 << 10
