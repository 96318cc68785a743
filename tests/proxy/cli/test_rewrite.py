"""`rewrite`: the main job."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import stat
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from formats.arm.sysreg import MIDR_EL1
from tests.proxy.cli.command_line import ALLOWED, SMP2, Result
from tests.proxy.helpers import R3, capture, differences, short, value, value_at, with_value

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_the_scenario(run: Callable[..., Result], tmp_path: Path, host: Path, stream: Path) -> None:
    out, report = tmp_path / "out.stream", tmp_path / "report.json"
    result = run("rewrite", stream, out, "--host", host, "--allow-midr", "0x411fd070", "--report", report)
    assert result.code == 0
    assert result.out == b""
    assert "rewritten: MIDR_EL1 of 2 vCPUs swapped" in result.error()
    written = out.read_bytes()
    assert differences(capture(SMP2), written) == [
        value_at(capture(SMP2), MIDR_EL1, 0) + 7,
        value_at(capture(SMP2), MIDR_EL1, 1) + 7,
    ]
    assert [value(written, MIDR_EL1, vcpu) for vcpu in (0, 1)] == [R3, R3]
    found = json.loads(report.read_text())
    assert (found["schema_version"], found["outcome"], found["reason"]) == (2, "rewritten", None)
    assert found["policy"] is None
    assert found["profile"] == {"path": str(host), "sha256": sha256(host.read_bytes()).hexdigest()}
    assert set(found["seconds"].values()) == {None}, "no guest stands for a file"
    assert found["bytes_in"] == found["bytes_out"] == len(written)
    assert [{key: change[key] for key in ("vcpu", "register", "id", "from", "to")} for change in found["changes"]] == [
        {"vcpu": n, "register": "MIDR_EL1", "id": "0x603000000013c000", "from": "0x411fd070", "to": "0x411fd073"}
        for n in (0, 1)
    ]
    assert all("--allow-midr" in change["rule"] for change in found["changes"])


@pytest.mark.parametrize("name", ["out.stream", "out.stream.xz"])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_copy_is_open_to_whom_its_source_is(
    run: Callable[..., Result], tmp_path: Path, host: Path, stream: Path, name: str, mode: int
) -> None:
    """It holds the guest's memory."""
    stream.chmod(mode)
    assert run("rewrite", stream, tmp_path / name, "--host", host, "--allow-midr", "0x411fd070").code == 0
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_what_came_through_a_pipe_is_its_owners(run: Callable[..., Result], tmp_path: Path, host: Path) -> None:
    out = tmp_path / "out.stream"
    assert run("rewrite", "-", out, "--host", host, "--allow-midr", "0x411fd070", stdin=capture(SMP2)).code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_reports_are_added_to_those_before(
    run: Callable[..., Result], tmp_path: Path, host: Path, stream: Path
) -> None:
    report = tmp_path / "audit.jsonl"
    for allowed in ("0x411fd070", "0x410fd083"):
        run("rewrite", stream, tmp_path / "out", "--host", host, "--allow-midr", allowed, "--report", report)
    assert [json.loads(line)["outcome"] for line in report.read_text().splitlines()] == ["rewritten", "refused"]


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
