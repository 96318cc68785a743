"""The probe as one file that runs on hosts where this program does not: Python 3.6 and its standard library.

It is made from the same modules as `host probe`, and answers the same.
"""

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from pprint import pformat
from typing import Final

import proxy
from formats.tables import read_rows, read_table
from proxy.hosts.script.older_python import SHIM, lowered

_ENTRY: Final = "proxy.hosts.script.entry"
_TABLES: Final = "formats.tables"
_READERS: Final[dict[str, Callable[[str, str], object]]] = {"read_table": read_table, "read_rows": read_rows}

_HEAD: Final = '''\
#!/usr/bin/env python3
"""Print the profile of this arm64 host: its registers, and what its KVM takes in them.

    ssh root@rack3 python3 - < probe.py > rack3.toml

It needs Python 3.6 or newer with its standard library, and /dev/kvm. It creates scratch VMs of one vCPU each, asks KVM
about them, and throws them away; it touches no guest and writes no file. Made by vmstate-proxy {version}
('host probe --script') from the modules below.
"""
import sys
import types


def _module(name, source):
    parent, _, last = name.rpartition(".")
    if parent and parent not in sys.modules:
        _module(parent, "")
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    if parent:
        setattr(sys.modules[parent], last, module)
    exec(compile(source, name, "exec"), module.__dict__)

'''
_TABLES_SOURCE: Final = '''
"""The tables that the modules read, by package and file."""
_TABLES = {tables}


def read_table(package, name):
    """Return a table."""
    return _TABLES[package, name]


read_rows = read_table
'''


def probe_script() -> str:
    """Return the text of the script."""
    sources = {"older": SHIM}
    tables: dict[tuple[str, str], object] = {}
    _collect(_ENTRY, sources, tables)
    parts = [_HEAD.format(version=proxy.__version__)]
    for name, source in sources.items():
        if name == _TABLES:
            source = _TABLES_SOURCE.format(tables=pformat(tables, width=116, sort_dicts=False))
        assert "'''" not in source
        parts.append(f"\n_module({name!r}, r'''\n{source.strip()}\n''')\n")
    parts.append(f"\nsys.exit(sys.modules[{_ENTRY!r}].main(sys.argv[1:]))\n")
    return "".join(parts)


def _collect(name: str, sources: dict[str, str], tables: dict[tuple[str, str], object]) -> None:
    """Add a module and, before it, those that it imports; and the tables that they read."""
    if name in sources:
        return
    if name == _TABLES:
        sources[name] = ""
        return
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    source = lowered(Path(spec.origin).read_text(encoding="utf-8"))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] in _OURS:
            _collect(node.module, sources, tables)
        if isinstance(node, ast.Call) and (reader := _READERS.get(ast.unparse(node.func))) is not None:
            package, file = (ast.literal_eval(argument) for argument in node.args)
            tables[package, file] = reader(package, file)
    sources[name] = source


_OURS: Final = ("formats", "proxy")
