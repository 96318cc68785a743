"""What may come: a captured stream, or a guest of a host that has a profile."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from formats.arm.register_list import RegisterList
from formats.arm.sysreg import MIDR_EL1, parse_register
from formats.errors import DeviceStateTooLargeError, ForeignStreamError, MalformedStreamError, TruncatedStreamError
from formats.files.libvirt_save import FORMATS
from proxy.captures.stream_or_profile import read_source
from proxy.errors import ProxyError
from proxy.hosts.host_registers import HostRegisters
from proxy.hosts.profile_text import write_profile
from tests.captures import CAPTURES
from tests.proxy.helpers import NAMES, R0, R3, capture, device_state, profile, short, value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.judging.verdict import Registers

SMP2 = "kvm-trixie-a57r0-smp2"
SCTLR_EL1 = parse_register("SCTLR_EL1")


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[bytes | str], str]:
    def store(content: bytes | str) -> str:
        path = tmp_path / "source"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return store


def is_smp2(vcpus: object) -> bool:
    assert isinstance(vcpus, list)
    assert all(isinstance(registers, RegisterList) for registers in vcpus)
    return [(one.vcpu, len(one), one[MIDR_EL1]) for one in vcpus] == [(0, 258, R0), (1, 258, R0)]


# --- streams


@pytest.mark.parametrize("pack", [bytes, lzma.compress, gzip.compress, bz2.compress])
def test_a_stream_is_read(stored: Callable[[bytes], str], pack: Callable[[bytes], bytes]) -> None:
    assert is_smp2(read_source(stored(pack(short(SMP2)))))


def test_a_recorded_one() -> None:
    assert is_smp2(read_source(str(CAPTURES / f"{SMP2}.xz")))


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(short(SMP2))))
    assert is_smp2(read_source("-"))


def test_a_pipe_is_read_once() -> None:
    """As of `check <(xzcat guest.xz)`: what was read to look at it does not come again."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end), os.fdopen(write_end, "wb") as writer:
        assert len(short(SMP2)) < 1 << 16, "more than a pipe holds"
        writer.write(short(SMP2))
        writer.close()
        assert is_smp2(read_source(f"/dev/fd/{read_end}"))


def test_a_stream_may_hold_the_words_of_a_profile(stored: Callable[[bytes], str]) -> None:
    """The machine's name is as good a place as any; a guest's memory begins not far from the stream's beginning."""
    name = b"schema_version"
    renamed = short(SMP2).replace(b"\0\0\0\x08virt-7.2", bytes([0, 0, 0, len(name)]) + name, 1)
    assert is_smp2(read_source(stored(renamed)))


def test_so_may_the_domain_in_a_save_file(stored: Callable[[bytes], str]) -> None:
    xml = b"<domain type='kvm'><metadata>schema_version</metadata></domain>\0"
    head = b"LibvirtQemudSave" + struct.pack("<5I", 2, len(xml), 1, FORMATS.index("raw"), 0) + bytes(56)
    assert is_smp2(read_source(stored(head + xml + short(SMP2))))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", TruncatedStreamError),
        (b"\x7fELF" + bytes(1000), ForeignStreamError),
        (b"# a file of settings\nmode = 1\n", ForeignStreamError),
        (short(SMP2)[:5000], TruncatedStreamError),
        (short(SMP2)[:-1], TruncatedStreamError),
        (short(SMP2) + b"\0", MalformedStreamError),
    ],
    ids=["empty", "ELF", "settings", "cut", "cut by a byte", "more"],
)
def test_what_is_no_stream(stored: Callable[[bytes], str], content: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_source(stored(content))


def test_a_damaged_archive_is_named(stored: Callable[[bytes], str]) -> None:
    packed = bytearray(lzma.compress(short(SMP2)))
    packed[len(packed) // 2 :] = b"\xff" * 500
    name = stored(bytes(packed))
    with pytest.raises(ProxyError) as caught:
        read_source(name)
    assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["missing", ".", "missing/at/all"])
def test_what_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProxyError) as caught:
        read_source(str(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_the_limit_holds(stored: Callable[[bytes], str]) -> None:
    name = stored(short(SMP2))
    size = len(device_state(short(SMP2)).held)
    assert is_smp2(read_source(name, device_state_limit=size))
    with pytest.raises(DeviceStateTooLargeError):
        read_source(name, device_state_limit=size - 1)


# --- profiles


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_stands_for_a_guest_of_its_host(stored: Callable[[str], str], name: str) -> None:
    (registers,) = read_source(stored(write_profile(profile(name))))
    assert isinstance(registers, HostRegisters)
    assert registers.vcpu == 0
    ids = [register for register, _ in registers.items()]
    assert ids == sorted(set(ids))
    assert len(ids) == (241 if "bookworm" in name else 258)
    for register, known in registers.items():
        assert registers.get(register) == known
        assert known in (None, value(capture(name), register))
        assert (known is None) == (register in (profile(name).others or ()))


def test_what_a_host_has_and_what_it_knows_are_two_things() -> None:
    registers: Registers = HostRegisters(profile("kvm-trixie-a57r3"))
    assert registers.get(MIDR_EL1) == R3
    assert registers.get(SCTLR_EL1) is None
    assert registers.get(0x603000000013FFFF) is None
    assert [id_ in registers for id_ in (MIDR_EL1, SCTLR_EL1, 0x603000000013FFFF)] == [True, True, False]


def test_a_profile_may_begin_with_words_of_its_own(stored: Callable[[str], str]) -> None:
    name = stored("# rack 7\n" * 300 + write_profile(profile(SMP2)))
    assert len(read_source(name)) == 1


def test_a_profile_that_does_not_list_all_registers(stored: Callable[[str], str]) -> None:
    name = stored(write_profile(replace(profile(SMP2), others=None)))
    with pytest.raises(ProxyError) as caught:
        read_source(name)
    assert str(caught.value).startswith(f"{name}: ")
    assert "also_present" in str(caught.value)
    assert "host probe" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "schema_version = 1\n",
        "schema_version = 3\nalso_present = []\n[registers]\n",
        'schema_version = 1\nwhitelist.midr = ["0x411fd070"]\n',
        'schema_version = 1\nalso_present = ["NO_SUCH_EL1"]\n[registers]\n',
        "schema_version = ",
        "\xff schema_version",
    ],
)
def test_a_broken_profile_is_named(stored: Callable[[bytes], str], text: str) -> None:
    name = stored(text.encode("latin-1"))
    with pytest.raises(ProxyError) as caught:
        read_source(name)
    assert str(caught.value).startswith(f"{name}:")
