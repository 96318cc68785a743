"""Forged sections, footers and vmdescs in the buffers of any device, and in all of the guest's memory.

A guest fills the queues of virtio devices, the buffers of USB devices and serial ports, and flash. What it can place
there is placed into the stream that a QEMU with such devices sent: at the beginning, amid and at the end of each body,
with the size in the vmdesc that QEMU would have written.
"""

from __future__ import annotations

import io
import json
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from formats.arm.sysreg import parse_register
from formats.errors import FormatError
from proxy.captures.offline import read_vcpus
from proxy.errors import RefusedError
from proxy.hosts.learning import learn_profile
from proxy.rewriter.rewriter import Rewriter
from tests.lab.guest import counter_guest
from tests.lab.proxy import running_proxy
from tests.lab.vm import running_vm, wire_uri
from tests.live.helpers import A57_TO_A72, learn, record
from tests.live.test_postcopy import SLOWLY, UNLIMITED
from tests.proxy.helpers import device_state, differences, judge, live, passed, shortened, value_at, with_value
from tests.streams import be32, footer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from formats.vmstate.locators import DeviceSection
    from proxy.judging.judge import Judge

DEVICES = (
    *("-device", "virtio-net-pci", "-device", "virtio-blk-pci,drive=d0", "-blockdev", "null-co,node-name=d0"),
    *("-device", "virtio-serial-pci", "-device", "virtconsole,chardev=c0", "-chardev", "null,id=c0"),
    *("-device", "virtio-scsi-pci", "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci"),
    *("-device", "qemu-xhci", "-device", "usb-kbd", "-device", "usb-storage,drive=d1"),
    *("-blockdev", "null-co,node-name=d1", "-device", "usb-tablet"),
    *("-device", "e1000", "-device", "sdhci-pci", "-device", "virtio-gpu-pci"),
)
SWAPPED = ("ID_MMFR0_EL1", "ID_MMFR0")
FORGED = 0xF0F0_F0F0_F0F0_F0F0
OWN = ("cpu", "cpu_common", "timer", "dirty-bitmap", "globalstate")
"""Sections that QEMU fills, and no guest."""


class Whole(NamedTuple):
    """A recorded stream, taken apart.

    Attributes:
        stream: All of it, as a source with a return path sends it.
        start: Where the device state begins.
        sections: The sections, their positions counted from there.
        end: Where they end.
        text: The vmdesc.
    """

    stream: bytes
    start: int
    sections: tuple[DeviceSection, ...]
    end: int
    text: bytes


def whole(recorded: bytes) -> Whole:
    stream = live(shortened(recorded))
    state = device_state(stream)
    end = state.offset + state.sections[-1].end
    assert stream[end : end + 2] == b"\0\x06"
    return Whole(stream, state.offset, state.sections, end, stream[end + 6 :])


def payloads(it: Whole, section: DeviceSection) -> Iterator[tuple[str, bytes]]:
    """Yield what a guest would place to be taken for more than a buffer."""
    [cpu] = [one for one in it.sections if one.name == "cpu"]
    forged = it.stream
    for name in SWAPPED:
        forged = with_value(forged, parse_register(name), FORGED)
    cpu_section = forged[it.start + cpu.start : it.start + cpu.end]
    header = it.stream[it.start + section.start : it.start + section.body]
    closing = footer(section.section_id)
    yield "a cpu section", closing + cpu_section + header
    yield "an end", closing + b"\0\x06" + be32(len(it.text)) + it.text
    yield "an end without a vmdesc", closing + b"\0"
    yield "headers and footers", (header + closing) * 20
    yield "subsections", (b"\x05\x07cpu/sve" + be32(1) + bytes(8)) * 20
    yield "a stream", it.stream[:200] + b"\x06" + be32(len(it.text)) + it.text


def placed(it: Whole, number: int, at: int, payload: bytes) -> tuple[bytes, bytes, int]:
    """Return the stream with a payload in a device's body, that without its vmdesc, and where it begins."""
    section, described = it.sections[number], json.loads(it.text)
    device: dict[str, Any] = described["devices"][number]
    fields = device.setdefault("fields", [])
    chosen = (0, len(fields) // 2, len(fields))[at]
    before = sum(one["size"] * one.get("array_len", 1) for one in fields[:chosen])
    fields.insert(chosen, {"name": "forged", "type": "buffer", "size": len(payload)})
    where = it.start + section.body + before
    sections = it.stream[:where] + payload + it.stream[where : it.end] + b"\0"
    text = json.dumps(described).encode()
    return sections + b"\x06" + be32(len(text)) + text, sections, where


@cache
def _judge(profile: bytes) -> Judge:
    host = learn_profile(read_vcpus(io.BytesIO(profile)), "cortex-a72")
    return judge(None, host=host, swap={parse_register(name): "listed" for name in SWAPPED})


async def test_no_device_s_buffer_is_taken_for_anything_else(tmp_path: Path) -> None:
    it = whole(await record(tmp_path / "a57", "cortex-a57", extra=DEVICES))
    a72 = await record(tmp_path / "a72", "cortex-a72", extra=DEVICES)

    def rewritten(stream: bytes) -> list[int]:
        return differences(stream, passed(Rewriter(_judge(a72).fresh(), live=True), [stream]))

    right = rewritten(it.stream)
    assert len(right) == len(SWAPPED)
    tried = refused = 0
    for number, section in enumerate(it.sections):
        if section.name in OWN:
            continue
        for nth, (name, payload) in enumerate(payloads(it, section)):
            if (number + nth) % 2:
                continue  # the next section has this one
            stream, bare, where = placed(it, number, (number + nth) // 2 % 3, payload)
            expected = [one + len(payload) * (one >= where) for one in right]
            what = f"{section.label}, {name}"
            assert rewritten(stream) == expected, what
            tried += 1
            try:
                assert rewritten(bare) == expected, what
            except (FormatError, RefusedError):
                refused += 1
    assert tried > 50
    assert 0 < refused < tried


MEMORY = 0x4200_0000
"""Where memory is filled with a stream; the counter's guest needs none of it."""

KINDS = {"precopy": {}, "multifd": {"multifd": True}, "postcopy": {"postcopy-ram": True}}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("machine", ["virt-7.2", "virt-7.2,suppress-vmdesc=on"], ids=["vmdesc", "no vmdesc"])
async def test_memory_full_of_streams(tmp_path: Path, kind: str, machine: str) -> None:
    profile = await learn(tmp_path, "cortex-a72")
    stream = (tmp_path / "cortex-a72.stream").read_bytes()
    at = value_at(stream, parse_register(SWAPPED[0]))
    forged = (stream[:200] + stream[at - 9000 :])[: 16 << 10]
    (tmp_path / "memory").write_bytes(b"".join(forged[shift:] + forged for shift in range(500)))
    loader = ("-device", f"loader,file={tmp_path / 'memory'},addr={MEMORY:#x},force-raw=on")
    async with (
        running_vm(name="source", machine=machine, guest=counter_guest(), extra=loader) as source,
        running_vm(name="destination", machine=machine, cpu="cortex-a72", incoming="defer") as destination,
    ):
        await destination.listen(capabilities=KINDS[kind])
        await source.wait_counter_moves()
        uri = wire_uri(await destination.incoming_port())
        async with running_proxy(uri, "--host", profile, *A57_TO_A72, "--allow-midr", "none", "--once") as proxy:
            await source.migrate(proxy.uri, capabilities=KINDS[kind], parameters=SLOWLY)
            if kind == "postcopy":
                await proxy.wait_text("to tcp:")
                await source.qmp("migrate-start-postcopy")
            await source.qmp("migrate-set-parameters", **UNLIMITED)
            assert (await source.wait_migration()).status == "completed", proxy.text()
            assert await proxy.wait_exit() == 0, proxy.text()
            await destination.wait_counter_moves()
            [report] = proxy.reports()
        assert sorted(change["register"] for change in report["changes"]) == sorted(SWAPPED)
        last = MEMORY + (tmp_path / "memory").stat().st_size - 8
        assert await destination.read_u64(last) == int.from_bytes(forged[-8:], "little")
