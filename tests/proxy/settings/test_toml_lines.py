"""Finding the line of a key in a TOML text."""

from __future__ import annotations

import pytest

from proxy.settings.toml_lines import Key, line_of

TEXT = """\
# a comment with key = "value" in it
schema_version = 1
mode = "repair"   # why not

[whitelist]
midr = [
    "0x411fd070",
]

[[whitelist.sets]]   # the first
reason = "one"
processors = ["a"]

[[whitelist.sets]]
reason = "two"
from = ["b"]

[[rule]]
registers = ["A"]

[[ rule ]]
registers = ["B"]
action = "swap"

[rule.nested]
deep = 1

[hosts]
"CCSIDR_EL1[0]" = "0x2"
'quoted' = 1
other.dotted = { inline = 1 }
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("schema_version",), 2),
        (("mode",), 3),
        (("whitelist",), 5),
        (("whitelist", "midr"), 6),
        (("whitelist", "midr", 0), 6),
        (("whitelist", "sets", 0), 10),
        (("whitelist", "sets", 0, "reason"), 11),
        (("whitelist", "sets", 1, "reason"), 15),
        (("whitelist", "sets", 1, "from", 0), 16),
        (("whitelist", "sets", 1, "to"), 14),
        (("rule", 0, "registers"), 19),
        (("rule", 0, "action"), 18),
        (("rule", 1, "action"), 23),
        (("rule", 1, "nested", "deep"), 26),
        (("hosts", "CCSIDR_EL1[0]"), 29),
        (("hosts", "quoted"), 30),
        (("hosts", "other", "dotted", "inline"), 31),
        (("key",), None),
        (("rule", 7), None),
        ((), None),
    ],
)
def test_lines(key: Key, line: int | None) -> None:
    assert line_of(TEXT, key) == line
