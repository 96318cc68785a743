"""Reading TOML settings into msgspec structs, with errors that name the file, the line and the key."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar, get_args

import msgspec

import proxy
from proxy.errors import ConfigError
from proxy.settings.toml_lines import line_of

T = TypeVar("T", bound=msgspec.Struct)

_VERSION: Final = "schema_version"
_AT: Final = re.compile(r" - at `\$?(?P<path>[^`]*)`$")
_UNKNOWN: Final = re.compile(r"unknown field `(?P<name>[^`]+)`")
_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")


@dataclass(frozen=True, slots=True)
class Settings(Generic[T]):
    """A settings file that has been read.

    Attributes:
        path: Where it is.
        text: Its text.
        value: What stands in it.
    """

    path: Path
    text: str
    value: T

    def where(self, *key: str | int) -> str:
        """Name the place of a key in errors and reports: `policy.toml:12: rule[1].action`."""
        return _where(self.path, self.text, key)


def load_toml(path: Path, kind: type[T]) -> Settings[T]:
    """Load a TOML file; unknown keys and wrong types are errors.

    Raises:
        ConfigError: The file cannot be read, is no TOML, or does not fit `kind`.
    """
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text)
        _check_version(path, text, found, kind)
        return Settings(path, text, msgspec.convert(found, kind))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(_explained(path, text, str(error))) from error
    except (ValueError, RecursionError) as error:
        # tomllib's errors are ValueErrors, and name line and column themselves.
        raise ConfigError(f"{path}: {error}") from error


def _check_version(path: Path, text: str, found: dict[str, object], kind: type[msgspec.Struct]) -> None:
    """Raise a ConfigError that says what helps, where a file does not say its version or is of a newer one."""
    field = next((one for one in msgspec.structs.fields(kind) if one.name == _VERSION), None)
    if field is None:
        return
    (known,) = get_args(field.type)
    if _VERSION not in found:
        raise ConfigError(f"{path}:1: {_VERSION}: it is missing; write {_VERSION} = {known} at the top of the file")
    version = found[_VERSION]
    if isinstance(version, int) and version > known:
        raise ConfigError(
            f"{_where(path, text, (_VERSION,))}: {version} is of a newer vmstate-proxy; this one, "
            f"{proxy.__version__}, reads {known}"
        )


def _explained(path: Path, text: str, message: str) -> str:
    """Turn msgspec's `... - at $.rule[1].action` into a place in the file."""
    key: list[str | int] = []
    if match := _AT.search(message):
        message = message[: match.start()]
        key = [int(step[2]) if step[2] else step[1] or "" for step in _STEP.finditer(match["path"])]
    if unknown := _UNKNOWN.search(message):
        key.append(unknown["name"])
        message = "there is no such key"
    return f"{_where(path, text, key)}: {message}" if key else f"{path}: {message}"


def _where(path: Path, text: str, key: "tuple[str | int, ...] | list[str | int]") -> str:
    line = line_of(text, key)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
    return f"{path}:{line}: {name}" if line is not None else f"{path}: {name}"
