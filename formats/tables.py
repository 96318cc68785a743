"""The tables that come with the packages, beside the code: TOML, or lines of words where there are hundreds of them."""

import pkgutil
from typing import Any


def read_table(package: str, name: str) -> dict[str, Any]:
    """Read a table in TOML.

    Args:
        package: `formats` or `proxy`.
        name: The file in it.
    """
    import tomllib

    return tomllib.loads(_text(package, name))


def read_rows(package: str, name: str) -> dict[str, list[list[str]]]:
    """Read a table of lines in sections, each a row of words; `#` begins a comment. It takes a tenth of TOML's time.

    Args:
        package: `formats` or `proxy`.
        name: The file in it.

    Returns:
        The rows of each section, which begins with its name in brackets on a line of its own.
    """
    sections: dict[str, list[list[str]]] = {}
    rows: list[list[str]] = []
    for line in _text(package, name).splitlines():
        words = line.partition("#")[0].split()
        if words and words[0].startswith("["):
            rows = sections[words[0].strip("[]")] = []
        elif words:
            rows.append(words)
    return sections


def _text(package: str, name: str) -> str:
    # Not importlib.resources, which loads much that a proxy about to start has no use for.
    data = pkgutil.get_data(package, name)
    assert data is not None
    return data.decode()
