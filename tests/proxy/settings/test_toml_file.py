"""TOML settings: errors name the file and the key."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec
import pytest

from proxy.errors import ConfigError, ExitCode
from proxy.settings.toml_file import load_toml

if TYPE_CHECKING:
    from pathlib import Path


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    depth: int = 0
    limit: int | None = None
    colour: Colour = Colour.RED
    sizes: dict[str, str] | None = None


class Item(msgspec.Struct, forbid_unknown_fields=True):
    source: str = msgspec.field(name="from")
    colours: list[Colour] = []


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    inner: Inner = msgspec.field(default_factory=Inner)
    items: list[Item] = []


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
        (b"name = 'a'\ninner.depth = '1'", ":2: inner.depth: it has to be a whole number, not a text in quotes"),
        (b"name = 'a'\ninner.limit = true", ":2: inner.limit: it has to be a whole number, not true or false"),
        (b"name = 'a'\ninner = 3", ":2: inner: it has to be a table, not a whole number"),
        (b"name = 'a'\ninner.colour = 'green'", ":2: inner.colour: 'green' is none of red, blue"),
        (
            b"name = 'a'\n[inner.sizes]\na = 'b'\n'c[0]' = 4",
            ":4: inner.sizes.c[0]: it has to be a text in quotes, not a whole number",
        ),
        (b"name = 'a'\n[[items]]\nfrom = 'b'\n[[items]]\n", ":4: items[1].from: it is missing"),
        (
            b"name = 'a'\n[[items]]\nfrom = 'b'\ncolours = ['red', 'green']",
            ":4: items[0].colours[1]: 'green' is none of red, blue",
        ),
        (b"inner.depth = 1", ":1: name: it is missing"),
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
