"""The tables that come with the packages, as TOML beside the code."""

import pkgutil
import tomllib
from typing import Any


def read_table(package: str, name: str) -> dict[str, Any]:
    """Read a table.

    Args:
        package: `formats` or `proxy`.
        name: The file in it.
    """
    # Not importlib.resources, which loads much that a proxy about to start has no use for.
    data = pkgutil.get_data(package, name)
    assert data is not None
    return tomllib.loads(data.decode())
