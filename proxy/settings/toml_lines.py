"""Where a key stands in a TOML text; tomllib keeps no places.

Tables and keys are found line by line, as people write them; an inline table or a dotted key is found by the line that
it begins on.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

Key = Sequence[str | int]

_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\[\]#]+?)\s*\]\]?\s*(?:#.*)?$")
_ENTRY: Final = re.compile(r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"))*)\s*=")
_PART: Final = re.compile(r"\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+)")


def line_of(text: str, key: Key) -> int | None:
    """Return the line, from 1, on which a key, or the nearest table around it, begins; None for none.

    Args:
        text: The TOML.
        key: Names, and the indexes of arrays of tables, as in ("rule", 1, "action").
    """
    places = _places(text)
    return next((places[here] for length in range(len(key), -1, -1) if (here := tuple(key[:length])) in places), None)


@lru_cache(maxsize=1)
def _places(text: str) -> dict[tuple[str | int, ...], int]:
    """Return the first line of every table and key."""
    places: dict[tuple[str | int, ...], int] = {}
    table: tuple[str | int, ...] = ()
    tables: defaultdict[tuple[str | int, ...], int] = defaultdict(int)
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _resolved(_parts(header[2]), tables)
            if header[1] == "[[":
                table = (*table, tables[table])
                tables[table[:-1]] += 1
            places.setdefault(table, number)
        elif entry := _ENTRY.match(line):
            places.setdefault((*table, *_parts(entry[1])), number)
    return places


def _parts(text: str) -> tuple[str, ...]:
    return tuple(next(filter(None, match.groups()), "") for match in _PART.finditer(text))


def _resolved(parts: tuple[str, ...], tables: "defaultdict[tuple[str | int, ...], int]") -> tuple[str | int, ...]:
    """Put the index of the newest table after the name of an array of tables, but for the last name."""
    found: tuple[str | int, ...] = ()
    for part in parts:
        if tables.get(found):
            found = (*found, tables[found] - 1)
        found = (*found, part)
    return found
