"""Reading TOML settings into msgspec structs, with errors that name the file, the line and the key."""

import enum
import re
import tomllib
from pathlib import Path
from types import NoneType
from typing import Any, Final, Generic, NamedTuple, TypeVar, get_args

import msgspec

import proxy
from proxy.errors import ConfigError
from proxy.settings.origin import Origin, origin_of
from proxy.settings.toml_lines import line_of

T = TypeVar("T", bound=msgspec.Struct)

_VERSION: Final = "schema_version"
_AT: Final = re.compile(r" - at `\$?(?P<path>[^`]*)`$")
_UNKNOWN: Final = re.compile(r"unknown field `(?P<name>[^`]+)`")
_MISSING: Final = re.compile(r"missing required field `(?P<name>[^`]+)`")
_WRONG_TYPE: Final = re.compile(r"^Expected `(?P<wanted>[^`]+)`, got `(?P<got>[^`]+)`$")
_WRONG_WORD: Final = re.compile(r"^Invalid enum value (?P<word>.*)$")
_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")

_TYPES: Final = {
    "array": "a list",
    "bool": "true or false",
    "datetime": "a date",
    "float": "a number",
    "int": "a whole number",
    "object": "a table",
    "str": "a text in quotes",
}
"""msgspec's names of types, and what they are in a TOML file."""


class Place(NamedTuple):
    """The place of a key in a settings file; which line that is, is looked for when it is written.

    Attributes:
        path: The file.
        text: Its text.
        key: The key.
    """

    path: Path
    text: str
    key: tuple[str | int, ...]

    def __str__(self) -> str:
        return where_in(self.path, self.text, self.key)


class Settings(msgspec.Struct, Generic[T], frozen=True):
    """A settings file that has been read.

    Attributes:
        path: Where it is.
        text: Its text.
        value: What stands in it.
        origin: Its path, and what its bytes were.
    """

    path: Path
    text: str
    value: T
    origin: Origin

    def where(self, *key: str | int) -> str:
        """Name the place of a key in errors and reports: `policy.toml:12: rule[1].action`."""
        return where_in(self.path, self.text, key)

    def place(self, *key: str | int) -> "Place":
        """Return the place of a key, for the many of which few are ever named."""
        return Place(self.path, self.text, key)


def load_toml(path: Path, kind: type[T]) -> Settings[T]:
    """Load a TOML file; unknown keys and wrong types are errors.

    Raises:
        ConfigError: The file cannot be read, is no TOML, or does not fit `kind`.
    """
    found, text = read_toml(path)
    _check_version(path, text, found, kind)
    try:
        return Settings(path, text, msgspec.convert(found, kind), origin_of(path, text.encode()))
    except msgspec.ValidationError as error:
        raise ConfigError(_explained(path, text, found, kind, str(error))) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Return what stands in a TOML file, and its text, which is its bytes in UTF-8.

    Raises:
        ConfigError: The file cannot be read, or is no TOML.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        return tomllib.loads(text), text
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        # tomllib's errors are ValueErrors, and name line and column themselves.
        raise ConfigError(f"{path}: {error}") from error


def _check_version(path: Path, text: str, found: dict[str, object], kind: type[msgspec.Struct]) -> None:
    """Raise a ConfigError that says what helps, where a file does not say its version, or one that is not read here."""
    field = next((one for one in msgspec.structs.fields(kind) if one.name == _VERSION), None)
    if field is None:
        return
    known = get_args(field.type)
    newest, all_known = max(known), " and ".join(map(str, known))
    if _VERSION not in found:
        raise ConfigError(f"{path}:1: {_VERSION}: it is missing; write {_VERSION} = {newest} at the top of the file")
    version = found[_VERSION]
    where = where_in(path, text, (_VERSION,))
    if type(version) is not int or version < min(known):
        raise ConfigError(
            f"{where}: it has to be {all_known.replace('and', 'or')}, the version that vmstate-proxy "
            f"{proxy.__version__} reads"
        )
    if version > newest:
        raise ConfigError(
            f"{where}: version {version} needs a newer vmstate-proxy; this one, {proxy.__version__}, reads version "
            f"{all_known}"
        )


def _explained(path: Path, text: str, found: object, kind: type[msgspec.Struct], message: str) -> str:
    """Turn msgspec's `... - at $.rule[1].action` into a place in the file, and its words into those of a TOML file."""
    key: list[str | int] = []
    if match := _AT.search(message):
        message = message[: match.start()]
        for step in _STEP.finditer(match["path"]):
            # msgspec does not tell which entry of a table with free keys it means: [...]
            key.append(int(step[2]) if step[2] else step[1] or _wrong_entry(_at(found, key), _type_at(kind, key)))
    if unknown := _UNKNOWN.search(message):
        key.append(unknown["name"])
        message = "there is no such key"
    elif missing := _MISSING.search(message):
        if not key:
            return f"{path}:1: {missing['name']}: it is missing"
        key.append(missing["name"])
        message = "it is missing"
    elif wrong := _WRONG_TYPE.search(message):
        wanted = wrong["wanted"].removesuffix(" | null")
        message = f"it has to be {_TYPES.get(wanted, wanted)}, not {_TYPES.get(wrong['got'], wrong['got'])}"
    elif wrong := _WRONG_WORD.search(message):
        message = f"{wrong['word']} is none of {', '.join(_words(_type_at(kind, key)))}"
    return f"{where_in(path, text, key)}: {message}" if key else f"{path}: {message}"


def _at(found: Any, key: list[str | int]) -> Any:  # noqa: ANN401 - what a TOML file holds
    for step in key:
        found = found[step]
    return found


def _type_at(kind: Any, key: list[str | int]) -> Any:  # noqa: ANN401 - a type
    """Return the type that a value has to have; key names the value."""
    for step in key:
        if NoneType in get_args(kind):
            (kind,) = (one for one in get_args(kind) if one is not NoneType)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            kind = next((one.type for one in msgspec.structs.fields(kind) if one.encode_name == step), None)
        else:
            kind = get_args(kind)[0 if isinstance(step, int) else -1]
    return kind


def _words(kind: object) -> list[str]:
    """Return the words of which a value has to be one."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [str(word.value) for word in kind]
    return [str(word) for word in get_args(kind)]


def _wrong_entry(table: dict[str, object], kind: object) -> str:
    """Return the first key of a table whose value is not of the type that all its values have to have."""
    for name, value in table.items():
        try:
            msgspec.convert({name: value}, kind)
        except msgspec.ValidationError:
            return name
    return "..."


def where_in(path: Path, text: str, key: "tuple[str | int, ...] | list[str | int]") -> str:
    """Name the place of a key in a TOML text; see `Settings.where`."""
    line = line_of(text, key)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
    return f"{path}:{line}: {name}" if line is not None else f"{path}: {name}"
