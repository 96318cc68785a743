"""Reading TOML settings into msgspec structs, with errors that name the file and the key."""

import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

from formats.sysreg import UnknownRegisterError, parse_register
from proxy.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)


def load_toml(path: Path, kind: type[T]) -> T:
    """Load a TOML file; unknown keys and wrong types are errors.

    Raises:
        ConfigError: The file cannot be read, is no TOML, or does not fit `kind`.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), kind)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        # tomllib's and msgspec's own errors are ValueErrors, too.
        raise ConfigError(f"{path}: {error}") from error


def register_id(name: str, where: str) -> int:
    """Return the id of a register that a setting names.

    Raises:
        ConfigError: There is no such register; `where` names the file and the key.
    """
    try:
        return parse_register(name)
    except UnknownRegisterError as error:
        raise ConfigError(f"{where}: {error}") from error


def register_value(text: str, where: str) -> int:
    """Return the register value that a setting gives: hexadecimal with 0x, or decimal, of at most 64 bits.

    Raises:
        ConfigError: It is no such number; `where` names the file and the key.
    """
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise ConfigError(f"{where}: {text!r} is no register value; write it as 0x411fd070")
    return value
