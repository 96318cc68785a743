"""`run --config`: options in a file and in the environment, and which counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.cli.run import command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.proxy.cli.command_line import Result

BASE = 'listen = "tcp::0"\nconnect = "tcp:h:1"\nmidr = "0x411fd073"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("listne = 1", "config.toml:4: listne: there is no option --listne"),
        ("config = 'x'", "config.toml:4: config: there is no option --config"),
        ("vmdesc-wait = 'long'", "config.toml:4: vmdesc-wait: 'long' is not a valid float"),
        ("vmdesc-wait = 99", "config.toml:4: vmdesc-wait: 99.0 is not in the range"),
        ("once = 'yes'", "config.toml:4: once: it has to be true or false"),
        ("max-migrations = true", "config.toml:4: max-migrations: it has to be a text in quotes or a number"),
        ("report = ['a', 'b']", "config.toml:4: report: it has to be a text in quotes or a number"),
        ("allow-midr = [['0x1']]", "config.toml:4: allow-midr: it has to be"),
        ("mode = 'bold'", "config.toml:4: mode: 'bold' is not one of"),
        ("log-level = 'loud'", "config.toml:4: log-level: 'loud' is not one of"),
        ("allow-register = 'CTR_EL'", "did you mean CTR_EL0"),
        ("[run]\nonce = true", "config.toml:4: run: there is no option --run"),
        ("once", "config.toml: "),
    ],
)
def test_what_is_wrong_in_the_file_is_named(run: Callable[..., Result], tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.toml").write_text(BASE + text)
    result = run("run", "--config", tmp_path / "config.toml")
    assert result.code == 2
    assert says in result.err
    assert "Traceback" not in result.err


def test_a_file_that_is_not_there(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("run", "--config", tmp_path / "missing.toml")
    assert (result.code, "missing.toml: No such file" in result.err) == (2, True)


def values(*arguments: str) -> dict[str, object]:
    with command.make_context("run", list(arguments)) as context:
        return context.params


def test_the_command_line_counts_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        BASE + "allow-midr = ['0x411fd070', '0x410fd030']\nmax-migrations = 7\nmax-connections = 70\nonce = true\n"
        "tls = '/etc/pki/qemu'\nbegin-within = 2.5\n"
    )
    found = values("--config", str(file))
    assert found["listen"] == ("tcp::0",)
    assert found["allow_midr"] == ("0x411fd070", "0x410fd030")
    assert (found["max_migrations"], found["max_connections"], found["begin_within"]) == (7, 70, 2.5)
    assert (found["once"], found["tls"], found["mode"]) == (True, "/etc/pki/qemu", None)
    monkeypatch.setenv("VMSTATE_PROXY_MAX_MIGRATIONS", "8")
    monkeypatch.setenv("VMSTATE_PROXY_MAX_CONNECTIONS", "80")
    monkeypatch.setenv("VMSTATE_PROXY_TLS", "/pki")
    found = values("--config", str(file), "--max-connections", "90")
    assert (found["max_migrations"], found["max_connections"], found["tls"]) == (8, 90, "/pki")


def test_every_option_is_called_as_its_parameter() -> None:
    """So that the environment has its name, too."""
    for parameter in command.params:
        if parameter.name != "config":
            assert f"--{str(parameter.name).replace('_', '-')}" in parameter.opts
