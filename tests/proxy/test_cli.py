"""The commands: what they print, leave behind, and exit with."""

from __future__ import annotations

import bz2
import contextlib
import gc
import gzip
import io
import json
import lzma
import os
import platform
import re
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from formats.events import SectionBegin, SectionFooter
from formats.sysreg import MIDR_EL1, Kind, describe, parse_register
from proxy.cli import cli, main
from proxy.host import write_profile
from tests import streams
from tests.captures import CAPTURES, read_manifest
from tests.proxy.helpers import (
    NAMES,
    NEWER,
    NEWER_DROPPED,
    NEWER_SWAPPED,
    OLDER,
    R0,
    R3,
    ROOT,
    capture,
    device_state,
    differences,
    downgraded,
    events,
    live,
    profile,
    short,
    value,
    value_at,
    with_value,
    without_vmdesc,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SMP2 = "kvm-trixie-a57r0-smp2"
ALLOWED = ("--midr", hex(R3), "--allow-midr", hex(R0))


@dataclass(frozen=True)
class Result:
    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.out)

    def error(self) -> str:
        """Return the only line on standard error."""
        (line,) = self.err.splitlines()
        assert line.startswith("vmstate-proxy: ")
        return line


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Result]:
    """Run the command line in this process; any exception but SystemExit is a traceback for its user."""

    def run(*args: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["vmstate-proxy", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as caught:
            main()
        sys.stdout.flush()
        if "--report" in args:
            gc.collect()  # what was left open is this test's, not another's
        out, err = capfdbinary.readouterr()
        code = caught.value.code
        assert code is None or isinstance(code, int)
        return Result(code or 0, out, err.decode())

    return run


def spawn(*args: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:  # noqa: ANN401
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "proxy", *map(str, args)], cwd=ROOT, stderr=subprocess.PIPE, timeout=20, **kwargs
    )


@pytest.fixture
def host(run: Callable[..., Result], tmp_path: Path) -> Path:
    """The profile of the r3 host, learned by the command."""
    path = tmp_path / "r3.toml"
    assert run("host", "learn", CAPTURES / "kvm-trixie-a57r3.xz", "-o", path).code == 0
    return path


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    path = tmp_path / "in.stream"
    path.write_bytes(capture(SMP2))
    return path


# --- the main job, as issue 2 has it


def test_the_scenario(run: Callable[..., Result], tmp_path: Path, host: Path, stream: Path) -> None:
    out, report = tmp_path / "out.stream", tmp_path / "report.json"
    result = run("rewrite", stream, out, "--host", host, "--allow-midr", "0x411fd070", "--report", report)
    assert result.code == 0
    assert result.out == b""
    assert "rewritten: MIDR_EL1 of 2 vCPUs changed" in result.error()
    written = out.read_bytes()
    assert differences(capture(SMP2), written) == [
        value_at(capture(SMP2), MIDR_EL1, 0) + 7,
        value_at(capture(SMP2), MIDR_EL1, 1) + 7,
    ]
    assert [value(written, MIDR_EL1, vcpu) for vcpu in (0, 1)] == [R3, R3]
    found = json.loads(report.read_text())
    assert (found["schema_version"], found["outcome"], found["reason"]) == (1, "rewritten", None)
    assert found["bytes_in"] == found["bytes_out"] == len(written)
    assert [{key: change[key] for key in ("vcpu", "register", "id", "from", "to")} for change in found["changes"]] == [
        {"vcpu": n, "register": "MIDR_EL1", "id": "0x603000000013c000", "from": "0x411fd070", "to": "0x411fd073"}
        for n in (0, 1)
    ]
    assert all("--allow-midr" in change["rule"] for change in found["changes"])


def test_an_empty_whitelist_refuses(run: Callable[..., Result], tmp_path: Path, host: Path, stream: Path) -> None:
    report = tmp_path / "report.json"
    before = sorted(os.listdir(tmp_path))
    result = run("rewrite", stream, tmp_path / "out.stream", "--host", host, "--report", report)
    assert result.code == 4
    assert "--allow-midr 0x411fd070" in result.error()
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "report.json"])
    found = json.loads(report.read_text())
    assert (found["outcome"], found["changes"]) == ("refused", [])
    assert "0x411fd070" in found["reason"]


def test_a_policy_file_does_the_same(run: Callable[..., Result], tmp_path: Path, host: Path, stream: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('schema_version = 1\nwhitelist.midr = ["0x411fd070"]\n')
    result = run("rewrite", stream, "/dev/null", "--host", host, "--policy", policy, "--report", "-")
    assert result.code == 0
    first, second = [change["rule"] for change in result.json["changes"]]
    assert first == second
    assert re.fullmatch(rf"{re.escape(str(policy))}:.* whitelist.* 0x411fd070", first)


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, bz2.compress])
def test_compressed_input(run: Callable[..., Result], tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "in").write_bytes(pack(short(SMP2)))
    assert run("rewrite", tmp_path / "in", tmp_path / "out", *ALLOWED).code == 0
    assert value((tmp_path / "out").read_bytes(), MIDR_EL1) == R3


@pytest.mark.parametrize("mode", ["repair", "blind", "observe"])
def test_modes(run: Callable[..., Result], tmp_path: Path, host: Path, mode: str) -> None:
    stream = with_value(short(SMP2), 0x603000000013C006, 9)
    (tmp_path / "in").write_bytes(stream)
    result = run("rewrite", tmp_path / "in", "-", "--host", host, "--allow-midr", "0x411fd070", "--mode", mode)
    assert result.code == (4 if mode == "repair" else 0)
    if mode == "blind":
        assert value(result.out, 0x603000000013C006) == 0
    if mode == "observe":
        assert result.out == stream
        assert "would be refused: " in result.err
    if mode == "repair":
        assert "--allow-register REVIDR_EL1" in result.error()


def test_what_a_refusal_advises_lets_the_stream_pass(run: Callable[..., Result], host: Path, tmp_path: Path) -> None:
    """The words of the message, taken as they are."""
    (tmp_path / "in").write_bytes(with_value(short(SMP2), 0x603000000013C006, 9))
    arguments: list[str | Path] = ["rewrite", tmp_path / "in", "/dev/null", "--host", host]
    for _ in range(2):
        result = run(*arguments)
        assert result.code == 4
        advice = re.search(r"(--allow-\w+) (\w+)", result.err)
        assert advice
        arguments += advice.groups()
    assert run(*arguments).code == 0


def test_several_options_add_up(run: Callable[..., Result], stream: Path) -> None:
    result = run(
        *("rewrite", stream, "/dev/null", "--midr", hex(R3), "--allow-midr", "0x410fd034, 0x411fd070"),
        *("--allow-midr", "none", "--allow-register", "CTR_EL0,REVIDR_EL1", "--report", "-"),
    )
    assert result.code == 0
    assert len(result.json["changes"]) == 2


# --- standard input and output


def test_from_standard_input_to_standard_output(run: Callable[..., Result]) -> None:
    result = run("rewrite", "-", "-", *ALLOWED, stdin=short(SMP2))
    assert result.code == 0
    assert result.out == with_value(with_value(short(SMP2), MIDR_EL1, R3, 0), MIDR_EL1, R3, 1)


def test_pipes() -> None:
    done = spawn("rewrite", "-", "-", *ALLOWED, input=capture(SMP2), stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert len(differences(capture(SMP2), done.stdout)) == 2


def test_a_refused_stream_leaves_no_device_state_on_standard_output(run: Callable[..., Result]) -> None:
    result = run("rewrite", "-", "-", "--midr", hex(R3), stdin=capture(SMP2))
    assert result.code == 4
    assert len(result.out) <= device_state(capture(SMP2)).offset


def test_output_and_report_cannot_share_standard_output(run: Callable[..., Result], stream: Path) -> None:
    assert run("rewrite", stream, "-", *ALLOWED, "--report", "-").code == 2


def test_a_profile_to_standard_output(run: Callable[..., Result], host: Path) -> None:
    result = run("host", "learn", CAPTURES / "kvm-trixie-a57r3.xz", "-o", "-")
    assert result.code == 0
    assert result.out == host.read_bytes()


@pytest.mark.parametrize(
    "args", [["rewrite", "-", "-", *ALLOWED], ["inspect", "-"], ["inspect", "-", "--json"]], ids=" ".join
)
def test_a_reader_that_goes_away_is_no_traceback(args: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end) as closed:
        done = spawn(*args, input=capture(SMP2), stdout=closed)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["rewrite", "-", "-", *ALLOWED],
        ["inspect", "-"],
        ["host", "learn", "-", "-o", "-"],
        ["rewrite", "-", "/dev/null", *ALLOWED, "--report", "-"],
    ],
    ids=" ".join,
)
def test_a_full_disk_under_standard_output_is_one_line(args: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = spawn(*args, input=capture(SMP2), stdout=full)
    err = done.stderr.decode()
    assert done.returncode == 1, err
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert "No space left on device" in err
    assert "vmstate-proxy: -: No space left" not in err  # `-` is the input


def test_a_full_disk_under_the_report_is_one_line(run: Callable[..., Result], stream: Path) -> None:
    result = run("rewrite", stream, "/dev/null", *ALLOWED, "--report", "/dev/full")
    assert result.code == 1
    assert "/dev/full: No space left on device" in result.err


def test_a_damaged_input_is_not_blamed_on_the_output(run: Callable[..., Result], tmp_path: Path) -> None:
    packed = bytearray(bz2.compress(capture(SMP2)))
    packed[len(packed) // 2 :] = b"\xff" * 1000
    (tmp_path / "in").write_bytes(packed)
    result = run("rewrite", tmp_path / "in", tmp_path / "out", *ALLOWED)
    assert result.code == 1
    assert result.error().startswith(f"vmstate-proxy: {tmp_path / 'in'}: ")
    assert not (tmp_path / "out").exists()


def test_rewriting_a_file_onto_itself(run: Callable[..., Result], stream: Path) -> None:
    assert run("rewrite", stream, stream, *ALLOWED).code == 0
    assert len(differences(capture(SMP2), stream.read_bytes())) == 2
    assert run("rewrite", stream, stream, "--midr", "0x410fd034").code == 4
    assert len(stream.read_bytes()) == len(capture(SMP2))


# --- exit codes


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["rewrite", "IN", "OUT"], "--mode observe"),
        (["rewrite", "IN"], "OUT"),
        (["rewrite"], "IN"),
        (["rewrite", "IN", "OUT", "--midr", "0x"], "--midr: '0x'"),
        (["rewrite", "IN", "OUT", "--midr", "none"], "--midr: 'none'"),
        (["rewrite", "IN", "OUT", *ALLOWED, "--mode", "bold"], "bold"),
        (["rewrite", "IN", "OUT", *ALLOWED, "--allow-midr", "any"], "--allow-midr: 'any'"),
        (["rewrite", "IN", "OUT", *ALLOWED, "--allow-register", "MIDR"], "--allow-register: SCTLR_EL1"),
        (["rewrite", "IN", "OUT", *ALLOWED, "--allow-register", "CTR_EL"], "did you mean CTR_EL0"),
        (["rewrite", "IN", "OUT", *ALLOWED, "--device-state-limit", "0"], "--device-state-limit"),
        (["rewrite", "IN", "OUT", *ALLOWED, "--host", "missing.toml"], "missing.toml: No such file"),
        (["rewrite", "IN", "OUT", *ALLOWED, "--policy", "missing.toml"], "missing.toml: No such file"),
        (["rewrite", "IN", "OUT", *ALLOWED, "--host", "IN"], "IN: "),
        (["rewrite", "IN", "OUT", *ALLOWED, "--policy", "BAD"], "BAD:"),
        (["rewrite", "IN", "OUT", "--host", "R3", "--midr", "0x410fd034"], "MIDR_EL1 is 0x411fd073"),
        (["rewrite", "missing", "OUT", *ALLOWED], "missing: No such file"),
        (["rewrite", ".", "OUT", *ALLOWED], ".: Is a directory"),
        (["rewrite", "IN", "no/such/OUT", *ALLOWED], "no/such/OUT: No such file"),
        (["rewrite", "IN", "OUT", *ALLOWED, "--report", "no/such/report"], "no/such/report: No such file"),
        (["rewrite", "IN", "OUT", *ALLOWED, "--bold"], "--bold"),
        (["inspect"], "IN"),
        (["inspect", "missing"], "missing: No such file"),
        (["host"], "learn"),
        (["host", "learn", "IN"], "--output"),
        (["host", "learn", "missing", "-o", "OUT"], "missing: No such file"),
        (["host", "learn", "IN", "-o", "no/such/OUT"], "no/such/OUT: No such file"),
        (["run", "--connect", "tcp:h:1", *ALLOWED], "--listen"),
        (["run", "--listen", "tcp:h:1", *ALLOWED], "--connect"),
        (["run", "--listen", "tcp::0", "--connect", "tcp:h:1"], "--mode observe"),
        (["run", "--listen", "h:1", "--connect", "tcp:h:1", *ALLOWED], "tcp:HOST:PORT"),
        (["run", "--listen", "tcp::0", "--connect", "udp:/x", *ALLOWED], "tcp:HOST:PORT"),
        (["run", "--listen", "tcp:192.0.2.1:0", "--connect", "tcp:h:1", *ALLOWED], "cannot listen on tcp:192.0.2.1:0"),
        (["run", "--listen", "tcp:no..name:0", "--connect", "tcp:h:1", *ALLOWED], "cannot listen on tcp:no..name:0"),
        (["run", "--listen", "tcp::0", "--connect", "tcp:h:1", *ALLOWED, "--vmdesc-wait", "0"], "--vmdesc-wait"),
        (["run", "--listen", "tcp::0", "--connect", "tcp:h:1", "--transparent", *ALLOWED], "--transparent for where"),
        (["run", "--listen", "tcp::0", "--connect", "tcp:h:1", *ALLOWED, "--mark", "7"], "--mark belongs to"),
        (["run", "--listen", "tcp::0", "--transparent", *ALLOWED, "--ports", "5-4"], "the smaller one first"),
        (["run", "--listen", "tcp::0", "--transparent", *ALLOWED, "--mark", "0"], "--mark '0': write a number"),
        (["run", "--listen", "tcp::0", "--transparent", *ALLOWED, "--mark", "0x100000000"], "32 bits"),
        (["run", "--listen", "stdio:", "--transparent", *ALLOWED], "takes TCP connections only"),
        (["transparent", "rules"], "--listen"),
        (["transparent", "rules", "--listen", "unix:/x"], "only TCP"),
        (["transparent", "rules", "--listen", "tcp::4444"], "use --tproxy"),
        (["transparent", "rules", "--listen", "tcp:0.0.0.0:4444", "--peers", "rack7"], "network 'rack7'"),
        (["walk"], "walk"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_2(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("IN").write_bytes(short(SMP2))
    Path("BAD").write_text("schema_version = 1\nmode = 'bold'")
    Path("R3").write_text('schema_version = 1\nregisters.MIDR_EL1 = "0x411fd073"')
    if says == "--allow-register: SCTLR_EL1":
        args = [*args[:-1], "SCTLR_EL1"]
    result = run(*args)
    assert result.code == 2
    assert says in result.err
    assert result.out == b""
    assert sorted(os.listdir()) == ["BAD", "IN", "R3"]


BROKEN = {
    "truncated": (capture(SMP2)[:300_000], "the stream ends"),
    "cut by a byte": (capture(SMP2)[:-1], "the stream ends"),
    "foreign": (b"\x7fELF" + bytes(1000), "not with 'QEVM'"),
    "libvirt": (b"LibvirtQemudSave" + bytes(1000), "a libvirt save file"),
    "empty": (b"", "the stream ends"),
    "more": (capture(SMP2) + b"\0", "follow the end"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_stream_is_3(run: Callable[..., Result], tmp_path: Path, what: str) -> None:
    content, says = BROKEN[what]
    (tmp_path / "in").write_bytes(content)
    result = run("rewrite", tmp_path / "in", tmp_path / "out", *ALLOWED, "--report", "-")
    assert result.code == 3
    assert says in result.error()
    assert "offset 0x" in result.error()
    assert (result.json["outcome"], result.json["changes"]) == ("failed", [])
    assert says in result.json["reason"]
    assert os.listdir(tmp_path) == ["in"]

    for command in (["inspect", tmp_path / "in"], ["host", "learn", tmp_path / "in", "-o", tmp_path / "out"]):
        result = run(*command)
        assert result.code == 3
        assert says in result.error()
    assert os.listdir(tmp_path) == ["in"]


def multifd() -> bytes:
    """A stream that announces the capability multifd."""
    stream = capture(SMP2)
    name = b"configuration/capabilities"
    subsection = b"\x05" + bytes([len(name)]) + name + struct.pack(">II", 1, 1) + b"\x07multifd"
    return stream[:61] + subsection + stream[61:]


def test_a_feature_that_is_not_supported_is_4(run: Callable[..., Result], tmp_path: Path) -> None:
    for command in (["rewrite", "-", tmp_path / "out", *ALLOWED], ["host", "learn", "-", "-o", tmp_path / "out"]):
        result = run(*command, stdin=multifd())
        assert result.code == 4
        assert "turn the capability multifd off" in result.error()
    assert os.listdir(tmp_path) == []


def test_inspecting_what_is_not_supported_is_4_too(run: Callable[..., Result]) -> None:
    """The stream is not broken."""
    result = run("inspect", "-", stdin=multifd())
    assert "turn the capability multifd off" in result.error()
    assert result.code == 4


def test_too_much_device_state_is_4(run: Callable[..., Result], tmp_path: Path) -> None:
    stream = short(SMP2)
    start = device_state(stream).offset
    section = b"\x04\0\0\0\x63\x05fifo0" + bytes(8) + bytes(2 << 20) + b"\x7e\0\0\0\x63"
    result = run(
        *("rewrite", "-", tmp_path / "out", *ALLOWED, "--device-state-limit", "1"),
        stdin=stream[:start] + section + stream[start:],
    )
    assert result.code == 4
    assert "--device-state-limit" in result.error()


# --- host learn


def test_learning(run: Callable[..., Result], tmp_path: Path, host: Path) -> None:
    text = host.read_text()
    assert 'MIDR_EL1 = "0x411fd073"' in text
    assert 'description = "learned from kvm-trixie-a57r3.xz"' in text
    run("host", "learn", CAPTURES / "kvm-trixie-a57r3.xz", "-o", tmp_path / "x", "--description", 'rack "7"')
    assert r'description = "rack \"7\""' in (tmp_path / "x").read_text()


def test_unlike_processors_cannot_be_learned(run: Callable[..., Result], tmp_path: Path) -> None:
    stream = with_value(short(SMP2), MIDR_EL1, R3, 1)
    result = run("host", "learn", "-", "-o", tmp_path / "out", stdin=stream)
    assert result.code == 4
    assert "MIDR_EL1 differs" in result.error()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_stream_passes_the_host_it_was_learned_from(
    run: Callable[..., Result], name: str, tmp_path: Path
) -> None:
    assert run("host", "learn", CAPTURES / f"{name}.xz", "-o", tmp_path / "host").code == 0
    result = run("rewrite", CAPTURES / f"{name}.xz", "-", "--host", tmp_path / "host")
    assert result.code == 0
    assert result.out == capture(name)


# --- inspect


@pytest.mark.parametrize("name", NAMES)
def test_inspect_json(run: Callable[..., Result], name: str) -> None:
    stream = capture(name)
    result = run("inspect", CAPTURES / f"{name}.xz", "--json")
    assert result.code == 0
    assert result.err == ""
    found = result.json
    assert found["schema_version"] == 1
    assert found["machine"] == "virt-7.2"
    assert all(
        section.keys() == {"offset", "length", "type", "id", "name", "instance", "version"}
        for section in found["sections"]
    )
    position = 61
    types = {1: "start", 2: "part", 3: "end", 4: "full"}
    for section in found["sections"]:
        assert section["offset"] == position
        assert section["type"] == types[stream[position]]
        (section_id,) = struct.unpack_from(">I", stream, position + 1)
        assert section["id"] == section_id
        if section["type"] in ("start", "full"):
            assert stream[position + 6 :].startswith(section["name"].encode())
            after = position + 6 + stream[position + 5]
            assert (section["instance"], section["version"]) == struct.unpack_from(">II", stream, after)
        position += section["length"]
        assert stream[position - 5 : position] == b"\x7e" + struct.pack(">I", section_id)
    assert stream[position : position + 2] == b"\x00\x06"
    assert position == len(without_vmdesc(stream)) - 1
    assert sum(section["length"] for section in found["sections"]) == position - 61

    count = next(int(one.vcpus) for one in read_manifest() if one.name == name)
    assert [vcpu["index"] for vcpu in found["vcpus"]] == list(range(count))
    for vcpu in found["vcpus"]:
        assert vcpu.keys() == {"index", "registers"}
        for register in vcpu["registers"]:
            assert register.keys() == {"id", "name", "value"}
            assert re.fullmatch(r"0x[0-9a-f]{16}", register["id"])
            assert re.fullmatch(r"0x[0-9a-f]+", register["value"])
        names = {register["name"]: register["value"] for register in vcpu["registers"]}
        assert len(names) == len(vcpu["registers"]) == (241 if "bookworm" in name else 258)
        assert int(names["MIDR_EL1"], 16) == value(stream, MIDR_EL1, vcpu["index"])


def test_inspect_for_people(run: Callable[..., Result]) -> None:
    result = run("inspect", CAPTURES / f"{SMP2}.xz")
    text = result.out.decode()
    assert result.code == 0
    assert f"machine virt-7.2, return path no, vmdesc yes, {len(capture(SMP2))} bytes" in text
    section = next(section for section in device_state(capture(SMP2)).sections if section.name == "cpu")
    start, length = device_state(capture(SMP2)).offset + section.start, section.end - section.start
    assert re.search(rf"^ +{start:#x} +{length} full +6 +0 +22 +cpu$", text, re.MULTILINE)
    assert len(re.findall("MIDR_EL1 .* 0x411fd070", text)) == 2
    assert "TTBR0_EL1" not in text
    assert text.count("\n  0x") == 2 * sum(
        describe(register).kind in (Kind.IDENTIFICATION, Kind.CACHE_ID) for register in profile(SMP2).values
    )
    everything = run("inspect", CAPTURES / f"{SMP2}.xz", "--registers").out.decode()
    assert everything.count("\n  0x") == 2 * 258


def test_inspect_without_a_vmdesc(run: Callable[..., Result]) -> None:
    with_it = run("inspect", "-", "--json", stdin=live(short(SMP2))).json
    without = run("inspect", "-", "--json", stdin=without_vmdesc(live(short(SMP2)))).json
    assert with_it["sections"] == without["sections"]
    assert with_it["vcpus"] == without["vcpus"]
    assert (with_it["vmdesc"], without["vmdesc"]) == (True, False)
    assert with_it["return_path"]


@pytest.mark.parametrize("length", [100, 61_000, 300_000, 500_000])
def test_inspecting_a_truncated_stream_shows_what_was_read(run: Callable[..., Result], length: int) -> None:
    stream = capture(SMP2)
    begun = [event for event in events(stream) if isinstance(event, SectionBegin) and event.offset < length]
    ended = [event for event in events(stream) if isinstance(event, SectionFooter) and event.offset + 5 <= length]
    result = run("inspect", "-", "--json", stdin=stream[:length])
    assert result.code == 3
    assert "the stream ends" in result.error()
    found = result.json
    assert found["machine"] == "virt-7.2"
    assert [section["offset"] for section in found["sections"]] == [event.offset for event in begun]
    for section, footer in zip(found["sections"], ended, strict=False):
        assert section["offset"] + section["length"] == footer.offset + 5

    shown = run("inspect", "-", stdin=stream[:length])
    assert shown.code == 3
    assert "machine virt-7.2" in shown.out.decode()
    assert len(re.findall(r" ram$", shown.out.decode(), re.MULTILINE)) == len(begun)


# --- check

CHECK = ("check", CAPTURES / f"{NEWER}.xz")
ALLOW_SWAPPED = ("--allow-register", ",".join(NEWER_SWAPPED))


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The profile of the host with the older kernel."""
    path = tmp_path / "older.toml"
    path.write_text(write_profile(profile(OLDER)))
    return path


def rows(result: Result) -> dict[str, tuple[str, str, list[str]]]:
    """Return the table: for each register its word, what stands beside it, and the lines under it."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    under: list[str] = []
    for line in result.out.decode().splitlines():
        if line.startswith(" " * 12):
            under.append(line.strip())
        elif match := re.fullmatch(r"(accepted|swapped|left out|refused) +(\S+(?: \(vCPU [\d, ]+\))?)  (.+)", line):
            under = []
            assert match[2] not in found
            found[match[2]] = (match[1], match[3], under)
    return found


def named(result: Result, word: str) -> list[str]:
    return [register for register, row in rows(result).items() if row[0] == word]


def last_line(result: Result) -> str:
    """Return the last line that is not indented: after it, options are listed that would help."""
    return [line for line in result.out.decode().splitlines() if not line.startswith(" ")][-1]


def options(result: Result) -> list[str]:
    """Return the options that the check says would allow what is refused."""
    lines = re.findall(r"^  if the guest can do with that: (.+)$", result.out.decode(), re.MULTILINE)
    return [word for line in lines for word in line.split()]


def test_a_guest_that_can_go_through_the_proxy(run: Callable[..., Result], older: Path) -> None:
    result = run(*CHECK, "--host", older, *ALLOW_SWAPPED)
    assert (result.code, result.err) == (0, "")
    assert named(result, "swapped") == NEWER_SWAPPED
    assert named(result, "left out") == NEWER_DROPPED
    found = rows(result)
    assert len(found) == len(NEWER_SWAPPED) + len(NEWER_DROPPED)
    assert found["ID_AA64DFR0_EL1"] == (
        "swapped", "0x10305408 -> 0x10305406",
        ["DebugVer 8 -> 6", "the guest will read DebugVer 6 instead of 8", "--allow-register"],
    )  # fmt: skip
    assert found["TCR2_EL1"] == (
        "left out",
        "0x0",
        ["the destination has no such register", "harmless: the guest's processor has no FEAT_TCR2"],
    )
    assert last_line(result) == (
        "The guest can go through the proxy, with 5 registers swapped and 17 registers left out; directly it is "
        "refused."
    )


def test_a_guest_that_cannot_go(run: Callable[..., Result], older: Path) -> None:
    result = run(*CHECK, "--host", older)
    assert (result.code, result.err) == (4, "")
    assert named(result, "refused") == NEWER_SWAPPED
    assert named(result, "left out") == NEWER_DROPPED
    assert options(result) == ["--allow-register", ",".join(NEWER_SWAPPED)]
    assert last_line(result) == "The guest cannot go: 5 registers are refused."


def test_a_guest_that_may_go_as_it_is(run: Callable[..., Result], tmp_path: Path, older: Path) -> None:
    result = run("check", CAPTURES / f"{OLDER}.xz", "--host", older)
    assert (result.code, result.err) == (0, "")
    assert result.out == b"The destination takes the guest as it is; nothing has to be changed.\n"
    (tmp_path / "newer.toml").write_text(write_profile(profile(NEWER)))
    result = run(
        "check", CAPTURES / f"{OLDER}.xz", "--host", tmp_path / "newer.toml", "--allow-register", NEWER_SWAPPED[3]
    )
    assert result.code == 0
    assert set(named(result, "accepted")) >= {"CCSIDR_EL1[0]", "CLIDR_EL1"}
    assert named(result, "swapped") == ["ID_AA64DFR0_EL1"]
    assert "with 1 register swapped; directly it is refused" in last_line(result)


def test_check_says_what_blind_would_change_without_need(
    run: Callable[..., Result], tmp_path: Path, older: Path
) -> None:
    path = tmp_path / "free.toml"
    writable = {parse_register("ID_AA64DFR0_EL1"): 0xF}
    path.write_text(write_profile(replace(profile(NEWER), writable=writable)))
    for source in (CAPTURES / f"{OLDER}.xz", older):
        result = run("check", source, "--host", path)
        assert (result.code, named(result, "swapped")) == (0, [])
        assert last_line(result) == "The destination takes the guest as it is; nothing has to be changed."
        result = run("check", source, "--host", path, "--mode", "blind")
        assert result.code == 0
        assert len(named(result, "swapped")) == 5
        assert "nothing has to be changed; through the proxy it goes with 5 registers swapped" in last_line(result)


def test_check_of_a_processor_alone_says_that_it_is_no_more(run: Callable[..., Result]) -> None:
    result = run(*CHECK, "--midr", "0x414fd0c1")
    assert result.code == 0
    assert "Nothing but 1 register was compared" in last_line(result)
    result = run(*CHECK, "--midr", hex(R3))
    assert result.code == 4
    assert "The guest cannot go: 1 register is refused." in result.out.decode()
    assert "--allow-midr 0x414fd0c1" in result.out.decode()


@pytest.mark.parametrize("source", ["stream", "profile", "-"])
def test_check_json(run: Callable[..., Result], tmp_path: Path, older: Path, source: str) -> None:
    (tmp_path / "newer.toml").write_text(write_profile(profile(NEWER)))
    name = {"stream": str(CHECK[1]), "profile": str(tmp_path / "newer.toml"), "-": "-"}[source]
    before = sorted(os.listdir(tmp_path))
    result = run("check", name, "--host", older, "--json", *ALLOW_SWAPPED, stdin=short(NEWER))
    assert (result.code, result.err) == (0, "")
    found = result.json
    verdicts = found.pop("verdicts")
    same = found.pop("same")
    assert "MIDR_EL1" in same
    assert not {verdict["register"] for verdict in verdicts} & set(same)
    assert found == {
        "schema_version": 1,
        "source": name,
        "destination": OLDER,
        "asked": "profile",
        "direct": False,
        "goes": True,
        "vcpus": 1,
        "lost_features": ["ID_AA64DFR0_EL1.DebugVer 8 -> 6"],
        "host_differences": [],
        "errata": {"new": [], "gone": []},
    }
    assert [verdict["register"] for verdict in verdicts if verdict["action"] == "swap"] == NEWER_SWAPPED
    assert [verdict["register"] for verdict in verdicts if verdict["action"] == "drop"] == NEWER_DROPPED
    for verdict in verdicts:
        keys = {"vcpu", "action", "register", "id", "from", "to", "rule", "why", "fields", "guest_sees", "option"}
        assert verdict.keys() == keys
        assert verdict["rule"]
        assert verdict["why"]
    (control,) = [verdict for verdict in verdicts if verdict["register"] == "CNTP_CTL_EL0"]
    assert control["from"] == (None if source == "profile" else "0x4")
    assert control["rule"].startswith("harmless if" if source == "profile" else "harmless: ")
    assert sorted(os.listdir(tmp_path)) == before


def test_check_json_of_what_cannot_and_what_need_not(run: Callable[..., Result], older: Path) -> None:
    result = run(*CHECK, "--host", older, "--json")
    assert result.code == 4
    assert (result.json["direct"], result.json["goes"]) == (False, False)
    assert {verdict["action"] for verdict in result.json["verdicts"]} == {"refuse", "drop"}
    result = run("check", CAPTURES / f"{OLDER}.xz", "--host", older, "--json")
    assert result.code == 0
    assert (result.json["direct"], result.json["goes"], result.json["verdicts"]) == (True, True, [])


def test_check_and_rewrite_agree(run: Callable[..., Result], older: Path) -> None:
    for arguments in (ALLOW_SWAPPED, (), ("--mode", "blind"), (*ALLOW_SWAPPED, "--allow-drop", "CNTPCT_EL0")):
        checked = run(*CHECK, "--host", older, "--json", *arguments)
        rewritten = run("rewrite", CHECK[1], "/dev/null", "--host", older, "--report", "-", *arguments)
        assert checked.code == rewritten.code
        changes = [
            {key: value for key, value in verdict.items() if key not in ("guest_sees", "option")}
            for verdict in checked.json["verdicts"]
            if verdict["action"] in ("swap", "drop")
        ]
        assert rewritten.json["changes"] == (changes if checked.json["goes"] else [])


def test_a_rewrite_that_leaves_registers_out(run: Callable[..., Result], tmp_path: Path, older: Path) -> None:
    result = run("rewrite", CHECK[1], tmp_path / "out", "--host", older, *ALLOW_SWAPPED)
    assert result.code == 0
    assert (tmp_path / "out").read_bytes() == downgraded(capture(NEWER))
    assert ", ".join(sorted(NEWER_SWAPPED)) + " of 1 vCPU changed, 17 registers of 1 vCPU left out (" in result.error()
    shown = run("inspect", tmp_path / "out", "--json").json
    assert len(shown["vcpus"][0]["registers"]) == 241
    # It is a stream like any other.
    assert run("check", tmp_path / "out", "--host", older).out.startswith(b"The destination takes the guest as it is")


def test_several_vcpus_share_a_line_where_they_are_alike(
    run: Callable[..., Result], tmp_path: Path, host: Path
) -> None:
    stream = with_value(short(SMP2), 0x603000000013C006, 9, 1)
    stream = with_value(stream, parse_register("CTR_EL0"), 0x8444C003, 0)
    (tmp_path / "in").write_bytes(with_value(stream, parse_register("CTR_EL0"), 0x8444C002, 1))
    result = run("check", tmp_path / "in", "--host", host, "--allow-midr", hex(R0))
    assert result.code == 4
    found = rows(result)
    assert found["MIDR_EL1"][:2] == ("swapped", "0x411fd070 -> 0x411fd073")
    assert found["MIDR_EL1"][2][0] == "Revision 0 -> 3"
    assert found["REVIDR_EL1 (vCPU 1)"][:2] == ("refused", "0x9 here, 0x0 there")
    assert found["CTR_EL0 (vCPU 0)"][:2] == ("refused", "0x8444c003 here, 0x8444c004 there")
    assert found["CTR_EL0 (vCPU 1)"][:2] == ("refused", "0x8444c002 here, 0x8444c004 there")
    assert len(found) == 4
    assert last_line(result) == "The guest cannot go: 2 registers are refused."
    result = run("check", tmp_path / "in", "--host", host, "--allow-midr", hex(R0), "--json")
    assert result.json["vcpus"] == 2
    assert len(result.json["verdicts"]) == 5


def test_what_check_advises_lets_the_guest_go(run: Callable[..., Result], tmp_path: Path, older: Path) -> None:
    """The options at the end, taken as they are."""
    source = tmp_path / "in"
    source.write_bytes(with_value(short(NEWER), parse_register("CNTP_CTL_EL0"), 1))
    policy = tmp_path / "policy.toml"
    policy.write_text("schema_version = 1\nregisters.drop_harmless = false\n")
    arguments: list[str | Path] = ["check", source, "--host", older, "--policy", policy]
    result = run(*arguments)
    assert result.code == 4
    assert named(result, "left out") == []
    result = run(*arguments, *options(result))
    assert result.code == 0
    assert named(result, "left out") == NEWER_DROPPED
    assert {row[2][-1] for row in rows(result).values() if row[0] == "left out"} == {"--allow-drop"}


def test_what_may_be_left_out_is_a_list(run: Callable[..., Result], tmp_path: Path, older: Path) -> None:
    (tmp_path / "in").write_bytes(with_value(short(NEWER), parse_register("CNTP_CTL_EL0"), 1))
    timer = ("CNTPCT_EL0, cntp_ctl_el0", "CNTP_CVAL_EL0")
    arguments = ("check", tmp_path / "in", "--host", older, *ALLOW_SWAPPED)
    result = run(*arguments)
    assert (result.code, named(result, "refused")) == (4, ["CNTPCT_EL0", "CNTP_CTL_EL0", "CNTP_CVAL_EL0"])
    result = run(*arguments, "--allow-drop", timer[0])
    assert (result.code, named(result, "refused")) == (4, ["CNTP_CVAL_EL0"])
    result = run(*arguments, "--allow-drop", timer[0], "--allow-drop", timer[1])
    assert (result.code, named(result, "refused")) == (0, [])


def test_a_mitigation_that_would_be_lost_is_told_in_words(
    run: Callable[..., Result], tmp_path: Path, host: Path
) -> None:
    register = "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1"
    (tmp_path / "in").write_bytes(with_value(short(SMP2), parse_register(register), 2, 1))
    for mode in ("repair", "blind", "observe"):
        result = run("check", tmp_path / "in", "--host", host, "--allow-midr", hex(R0), "--mode", mode)
        assert result.code == 4
        word, value_, (why, rule) = rows(result)[f"{register} (vCPU 1)"]
        assert (word, value_) == ("refused", "0x2 here, 0x0 there")
        assert "NOT_REQUIRED on the source, NOT_AVAIL on the destination" in why
        assert "never lowered" in rule
        assert last_line(result) == "The guest cannot go: 1 register is refused."


def test_a_stream_of_another_architecture_passes(run: Callable[..., Result], tmp_path: Path, older: Path) -> None:
    parts = streams.small()
    other = replace(parts, sections=(parts.sections[0], *parts.sections[2:]))
    (tmp_path / "in").write_bytes(other.stream())
    result = run("check", tmp_path / "in", "--host", older)
    assert (result.code, result.out) == (0, b"The stream holds no arm64 vCPU: it passes as it is.\n")


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_stream_cannot_be_checked(
    run: Callable[..., Result], tmp_path: Path, older: Path, what: str
) -> None:
    content, says = BROKEN[what]
    (tmp_path / "in").write_bytes(content)
    for arguments in ((), ("--json",)):
        result = run("check", tmp_path / "in", "--host", older, *arguments)
        assert (result.code, result.out) == (3, b"")
        assert says in result.error()
        assert str(tmp_path / "in") in result.error()


def test_a_stream_that_is_not_supported_cannot_be_checked(run: Callable[..., Result], older: Path) -> None:
    result = run("check", "-", "--host", older, stdin=multifd())
    assert (result.code, result.out) == (4, b"")
    assert "turn the capability multifd off" in result.error()


def test_check_minds_the_limit_of_device_state(run: Callable[..., Result], host: Path) -> None:
    stream = short(SMP2)
    start = device_state(stream).offset
    section = b"\x04\0\0\0\x63\x05fifo0" + bytes(8) + bytes(2 << 20) + b"\x7e\0\0\0\x63"
    result = run(
        "check", "-", "--host", host, "--device-state-limit", "1", stdin=stream[:start] + section + stream[start:]
    )
    assert result.code == 4
    assert "--device-state-limit" in result.error()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["check"], "SOURCE"),
        (["check", "IN"], "--host PROFILE, --midr ID, or --kvm"),
        (["check", "IN", "--mode", "observe"], "--host PROFILE, --midr ID, or --kvm"),
        (["check", "missing", "--midr", hex(R3)], "missing: No such file"),
        (["check", ".", "--midr", hex(R3)], ".: Is a directory"),
        (["check", "PARTIAL", "--midr", hex(R3)], "PARTIAL: it does not list all registers"),
        (["check", "POLICY", "--midr", hex(R3)], "POLICY:"),
        (["check", "IN", "--host", "IN"], "IN: "),
        (["check", "IN", "--kvm", "--host", "PARTIAL"], "--kvm asks this host"),
        (["check", "IN", "--kvm", "--midr", hex(R3)], "--kvm asks this host"),
        (["check", "IN", "--midr", hex(R3), "--vcpu-features", "SVE"], "give --kvm, too"),
        (["check", "IN", "--kvm", "--vcpu-features", "SVE,FPU"], "--vcpu-features: there is no feature FPU"),
        (["check", "IN", "--midr", hex(R3), "--allow-drop", "CNTPCT"], "--allow-drop: unknown register 'CNTPCT'"),
        (["check", "IN", "--midr", hex(R3), "--allow-drop", "KVM_REG_ARM_STD_BMAP"], "never left out"),
        (["check", "IN", "--midr", hex(R3), "--allow-register", "CNTPCT_EL0"], "never swapped"),
        (["run", "--listen", "tcp::0", "--connect", "tcp:h:1", "--midr", hex(R3), "--vcpu-features", "SVE"], "--kvm"),
        (["rewrite", "IN", "OUT", "--midr", hex(R3), "--allow-drop", "PSCI"], "--allow-drop: unknown register"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_of_check_is_2(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("IN").write_bytes(short(SMP2))
    Path("PARTIAL").write_text('schema_version = 1\nregisters.MIDR_EL1 = "0x411fd073"')
    Path("POLICY").write_text('schema_version = 1\nwhitelist.midr = ["0x411fd070"]')
    result = run(*args)
    assert result.code == 2
    assert says in result.err
    assert result.out == b""


@pytest.mark.skipif(platform.machine() in ("aarch64", "arm64"), reason="this host may have what is missed here")
@pytest.mark.parametrize(
    "args",
    [
        ("check", CAPTURES / f"{SMP2}.xz", "--kvm"),
        ("check", CAPTURES / f"{SMP2}.xz", "--kvm", "--vcpu-features", "PSCI_0_2,pmu_v3", "--json"),
        ("check", "missing", "--kvm"),
        ("rewrite", CAPTURES / f"{SMP2}.xz", "/dev/null", "--kvm"),
        ("run", "--listen", "tcp:127.0.0.1:0", "--connect", "tcp:127.0.0.1:1", "--kvm"),
        ("host", "probe", "-o", "-"),
    ],
    ids=lambda args: f"{args[0]} {args[-1]}",
)
def test_where_there_is_no_arm64_kvm_it_says_so(run: Callable[..., Result], args: tuple[str | Path, ...]) -> None:
    result = run(*args)
    assert (result.code, result.out) == (1, b"")
    assert "only an arm64 host's KVM knows arm64 registers" in result.error()
    assert platform.machine() in result.error()


# --- help


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_help_teaches_by_example(run: Callable[..., Result], path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.code == 0
    text = result.out.decode()
    assert "Example" in text or not path
    assert "vmstate-proxy " + " ".join(path) in text.split("Usage", 1)[1].split("\n", 1)[1]


def test_the_help_lists_the_exit_codes(run: Callable[..., Result]) -> None:
    text = run("--help").out.decode()
    assert all(re.search(rf"^\s+{code}  \w", text, re.MULTILINE) for code in range(5))


def test_the_risk_of_no_return_path_is_told(run: Callable[..., Result]) -> None:
    text = run("run", "--help").out.decode()
    assert re.search(r"--allow-no-return-path.*RISK", text, re.DOTALL)


def test_the_version(run: Callable[..., Result]) -> None:
    assert re.fullmatch(rb"vmstate-proxy, version \d+\.\d+\.\d+\n", run("--version").out)


def test_no_command_is_2(run: Callable[..., Result]) -> None:
    assert run().code == 2


# --- memory

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
