"""The libvirt lab leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.libvirt import LibvirtGuest, running_libvirt
from tests.lab.qmp import LabError

_ROOT = Path(__file__).parents[2]
_HOLD = """
import signal, sys, trio
from tests.lab.libvirt import running_libvirt

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born without

async def hold(lab):
    async with lab.guest() as guest:
        print(lab.folder, guest.name, flush=True)
        await trio.sleep_forever()

with running_libvirt() as lab:
    trio.run(hold, lab)
"""


def processes_with(text: str) -> list[str]:
    """The command lines of this machine's processes that have this text in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended
            continue
        if text in line:
            found.append(line)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_lab_that_is_killed_takes_all_with_it(number: signal.Signals) -> None:
    before = set(os.listdir("/sys/class/net"))
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD], cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as holder:
        assert holder.stdout is not None
        folder, guest = holder.stdout.readline().split()
        assert len(processes_with(folder)) >= 3  # two hosts and a QEMU, at least
        holder.send_signal(number)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (processes_with(folder) or processes_with(guest)):
        time.sleep(0.05)
    assert processes_with(folder) + processes_with(guest) == []
    assert set(os.listdir("/sys/class/net")) == before
    assert folder not in Path("/proc/self/mounts").read_text()
    assert Path(folder).exists() == (number is signal.SIGKILL)
    if number is signal.SIGKILL:
        shutil.rmtree(folder)


async def test_two_labs_do_not_see_each_other() -> None:
    with running_libvirt() as one, running_libvirt() as other:
        async with one.guest() as guest:
            assert await one.source.domains() == {guest.name}
            assert await other.source.domains("--all") == set()
            with pytest.raises(LabError, match="failed to get domain"):
                await LibvirtGuest(guest.name).counter(other.source)
