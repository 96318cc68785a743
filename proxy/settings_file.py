"""Reading TOML settings into msgspec structs, with errors that name the file and the key."""

import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

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
