"""TOML settings: errors name the file and the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from formats.sysreg import MIDR_EL1
from proxy.errors import ConfigError, ExitCode
from proxy.settings_file import load_toml
from proxy.words import register_id, register_value

if TYPE_CHECKING:
    from pathlib import Path


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    depth: int = 0


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    inner: Inner = msgspec.field(default_factory=Inner)


def load(tmp_path: Path, content: bytes) -> Outer:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    return load_toml(path, Outer)


def test_settings_are_read(tmp_path: Path) -> None:
    assert load(tmp_path, 'name = "ü"\ninner.depth = 3'.encode()) == Outer("ü", Inner(3))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name = 'a'\ninner.depths = 1", "`depths` - at `$.inner`"),
        (b"name = 'a'\ninner.depth = '1'", "`$.inner.depth`"),
        (b"inner.depth = 1", "`name`"),
        (b"name = 'a'\nname = 'b'\n", "line 2"),
        (b"name = '\xff'", "utf-8"),
        (b"\x00", "line 1"),
    ],
)
def test_bad_settings_name_file_and_key(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'settings.toml'}: ")
    assert says in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize(
    "content", [b"name = " + b"9" * 5000, b"name = " + b"[" * 20_000], ids=["5000 digits", "20000 brackets"]
)
def test_settings_that_the_toml_reader_itself_trips_over(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, content)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: No such file"):
        load_toml(tmp_path / "missing.toml", Outer)
    with pytest.raises(ConfigError, match="Is a directory"):
        load_toml(tmp_path, Outer)


def test_register_id() -> None:
    assert register_id("midr_el1", "f: k") == MIDR_EL1
    assert register_id("0x603000000013C000", "f: k") == MIDR_EL1
    with pytest.raises(ConfigError, match=r"^f: k: unknown register 'MDIR_EL1'; did you mean .*MIDR_EL1"):
        register_id("MDIR_EL1", "f: k")


@pytest.mark.parametrize(
    ("text", "value"), [("0x10", 16), ("10", 10), ("0", 0), ("0xffffffffffffffff", (1 << 64) - 1), ("0XAB", 0xAB)]
)
def test_register_value(text: str, value: int) -> None:
    assert register_value(text, "f: k") == value


@pytest.mark.parametrize("text", ["", "x", "0x", "1.0", "-1", "0x10000000000000000", "ff", "010", "9" * 5000])
def test_no_register_value(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^f: k: "):
        register_value(text, "f: k")
