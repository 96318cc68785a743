"""Where a key stands in a TOML text; tomllib keeps no places.

Tables and keys are found line by line, as people write them; an inline table or a dotted key is found by the line that
it begins on.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
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
    wanted = tuple(key)
    best: tuple[int, int] | None = None
    table: tuple[str | int, ...] = ()
    tables: defaultdict[tuple[str | int, ...], int] = defaultdict(int)
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _resolved(_parts(header[2]), tables)
            if header[1] == "[[":
                table = (*table, tables[table])
                tables[table[:-1]] += 1
            here = table
        elif entry := _ENTRY.match(line):
            here = (*table, *_parts(entry[1]))
        else:
            continue
        if wanted[: len(here)] == here and (best is None or len(here) > best[0]):
            best = len(here), number
    return None if best is None else best[1]


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
