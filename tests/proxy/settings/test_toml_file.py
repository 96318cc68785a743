"""TOML settings: errors name the file and the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from proxy.errors import ConfigError, ExitCode
from proxy.settings.toml_file import load_toml

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
    return load_toml(path, Outer).value


def test_settings_are_read(tmp_path: Path) -> None:
    assert load(tmp_path, 'name = "ü"\ninner.depth = 3'.encode()) == Outer("ü", Inner(3))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name = 'a'\ninner.depths = 1", ":2: inner.depths: there is no such key"),
        (b"name = 'a'\ninner.depth = '1'", ":2: inner.depth: Expected `int`"),
        (b"inner.depth = 1", "`name`"),
        (b"name = 'a'\nname = 'b'\n", "line 2"),
        (b"name = '\xff'", "utf-8"),
        (b"\x00", "line 1"),
    ],
)
def test_bad_settings_name_file_and_key(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'settings.toml'}:")
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
