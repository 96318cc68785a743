"""What is loaded before the program listens, and what only then; counted without a clock."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest

from proxy.errors import ExitCode
from tests.proxy.helpers import ROOT

RUN = [
    *("run", "--listen", "tcp:127.0.0.1:0", "--connect", "tcp:127.0.0.1:9", "--once"),
    *("--host", "captures/hosts/trixie-a57.toml", "--allow-midr", "0x411fd070"),
]
LISTENING = re.compile(r"listening on tcp:127\.0\.0\.1:(\d+), for the destination at tcp:127\.0\.0\.1:9$")
LATER = {
    "trio",
    "construct",
    "ssl",
    "formats.vmstate.cpu_section",
    "formats.stream.parser",
    "proxy.live.relay",
    "proxy.live.session",
}
"""What takes most of the time, and what only a migration needs."""


def test_it_listens_before_it_has_loaded_what_carries_migrations() -> None:
    """The interpreter says what it has imported as soon as it has, where the program says that it listens."""
    command = [sys.executable, "-X", "importtime", "-m", "proxy", *RUN]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        before: list[str] = []
        listening = None
        while listening is None:
            line = process.stderr.readline()
            assert line, before
            before.append(line)
            listening = LISTENING.search(line)
        with socket.create_connection(("127.0.0.1", int(listening[1]))) as source:
            source.sendall(b"no stream")
            with pytest.raises(ConnectionResetError):
                source.recv(1)
        process.terminate()
        after = process.stderr.readlines()
    assert modules(after) >= LATER
    assert not LATER & modules(before)
    assert "click" in modules(before)


TRIXIE, SID = "captures/hosts/trixie-a57.toml", "captures/hosts/sid-a57.toml"
STREAM = "captures/kvm-trixie-a57r0.xz"
OF_STREAMS = {"construct", "pdb", "formats.stream.parser", "formats.stream.events", "proxy.captures.stream_files"}
"""What only a stream is read with; a profile is not."""
OF_VERDICTS = {"proxy.judging.judge", "proxy.policy.policy", "proxy.hosts.profile"}
OF_OTHERS = {"trio", "asyncio", "ssl", "socket", "subprocess", "rich", "formats.files.qcow2", "proxy.report.report"}
"""What neither a file needs that is looked at, nor a verdict."""


@pytest.mark.parametrize(
    ("command", "needed", "not_needed"),
    [
        (["inspect", STREAM], OF_STREAMS, OF_VERDICTS | OF_OTHERS),
        (["check", STREAM, "--host", TRIXIE, "--allow-midr", "0x411fd070"], OF_STREAMS | OF_VERDICTS, OF_OTHERS),
        (["check", SID, "--host", TRIXIE, "--allow-drop", "TCR2_EL1"], OF_VERDICTS, OF_STREAMS | OF_OTHERS),
        (["host", "matrix", TRIXIE, SID], OF_VERDICTS, OF_STREAMS | OF_OTHERS),
    ],
    ids=["inspect", "check of a stream", "check of a profile", "host matrix"],
)
def test_a_command_loads_what_it_needs(command: list[str], needed: set[str], not_needed: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "proxy", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (ExitCode.OK, ExitCode.REFUSED), done.stderr
    loaded = modules(done.stderr.splitlines())
    assert needed <= loaded
    assert not not_needed & loaded


def modules(lines: list[str]) -> set[str]:
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
