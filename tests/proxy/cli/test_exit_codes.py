"""What the commands exit with, and say, when they cannot do their work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.proxy.cli.bad_streams import BROKEN, multifd
from tests.proxy.cli.command_line import ALLOWED, SMP2, Result
from tests.proxy.helpers import device_state, short

if TYPE_CHECKING:
    from collections.abc import Callable


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
        (["rewrite", "IN", "OUT", *ALLOWED, "--bold"], "--bold"),
        (["inspect"], "IN"),
        (["host"], "learn"),
        (["host", "learn", "IN"], "--output"),
        (["run", "--connect", "tcp:h:1", *ALLOWED], "--listen"),
        (["run", "--listen", "tcp:h:1", *ALLOWED], "--connect"),
        (["run", "--listen", "tcp::0", "--connect", "tcp:h:1"], "--mode observe"),
        (["run", "--listen", "h:1", "--connect", "tcp:h:1", *ALLOWED], "tcp:HOST:PORT"),
        (["run", "--listen", "tcp::0", "--connect", "udp:/x", *ALLOWED], "tcp:HOST:PORT"),
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
        (
            ["run", "--listen", "tcp::0", "--connect", "tcp:h:1", "--hosts", ".", "--kvm"],
            "--hosts has the destinations'",
        ),
        (["run", "--listen", "tcp::0", "--connect", "tcp:h:1", "--hosts", "."], "there is no profile"),
        (["run", "--listen", "tcp::0", "--connect", "tcp:h:1", *ALLOWED, "--default-host", "R3"], "belongs to --hosts"),
        (
            ["run", "--listen", "tcp::0", "--connect", "tcp:h:1", *ALLOWED, "--metrics", "unix:/x"],
            "write tcp:HOST:PORT",
        ),
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


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["rewrite", "missing", "OUT", *ALLOWED], "missing: No such file"),
        (["rewrite", ".", "OUT", *ALLOWED], ".: Is a directory"),
        (["check", ".", *ALLOWED], ".: Is a directory"),
        (["rewrite", "missing", "--in-place", *ALLOWED], "missing: No such file"),
        (["rewrite", "IN", "no/such/OUT", *ALLOWED], "no/such/OUT: No such file"),
        (["rewrite", "IN", "OUT", *ALLOWED, "--report", "no/such/report"], "no/such/report: No such file"),
        (["inspect", "missing"], "missing: No such file"),
        (["host", "learn", "missing", "-o", "OUT"], "missing: No such file"),
        (["host", "learn", "IN", "-o", "no/such/OUT"], "no/such/OUT: No such file"),
        (["run", "--listen", "tcp:192.0.2.1:0", "--connect", "tcp:h:1", *ALLOWED], "cannot listen on tcp:192.0.2.1:0"),
        (["run", "--listen", "tcp:no..name:0", "--connect", "tcp:h:1", *ALLOWED], "cannot listen on tcp:no..name:0"),
        (["run", "--listen", "systemd:", "--connect", "tcp:h:1", *ALLOWED], "cannot listen on systemd:"),
        (["check", "missing", *ALLOWED], "missing: No such file"),
        (["diff", "IN", "missing"], "missing: No such file"),
        (["replay", "missing", "tcp:h:1"], "missing: No such file"),
        (["record", "no/such/OUT", "--listen", "tcp::0"], "no/such/OUT.partial: No such file"),
        (["record", "OUT", "--listen", "tcp:192.0.2.1:0"], "cannot listen on tcp:192.0.2.1:0"),
        (["manual", "IN/man"], "IN/man: Not a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_file_or_an_address_that_fails_is_1(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("IN").write_bytes(short(SMP2))
    result = run(*args)
    assert (result.code, result.out) == (1, b"")
    assert says in result.error()
    assert os.listdir() == ["IN"]


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


def test_a_source_that_is_a_broken_stream_is_named(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(short(SMP2)[:3000])
    result = run("run", "--listen", "tcp::0", "--connect", "tcp:h:1", *ALLOWED, "--source", tmp_path / "cut")
    assert result.code == 3
    assert f"--source {tmp_path / 'cut'}: offset 0xbb8" in result.error()


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
