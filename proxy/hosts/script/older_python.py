"""Modules of this project for a Python as old as 3.6: what newer ones brought is written out, type hints are left out.

It knows what the modules need that `proxy.hosts.script.assembly` takes, and no more; a test has the result checked.
"""

import ast
from typing import Final

SHIM: Final = '''
import enum


class StrEnum(str, enum.Enum):
    """enum.StrEnum of Python 3.11."""


class field:
    """dataclasses.field of Python 3.7."""

    def __init__(self, default_factory=None, default=None, **_):
        self.default_factory = default_factory or (lambda: default)


def dataclass(*names):
    """Do what dataclasses.dataclass of Python 3.7 does with frozen=True."""
    def decorate(cls):
        defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}

        def __init__(self, *args, **given):
            given.update(zip(names, args))
            for name in names:
                value = given[name] if name in given else defaults[name]
                if isinstance(value, field):
                    value = value.default_factory()
                self.__dict__[name] = value

        def values(self):
            return tuple(self.__dict__[name] for name in names)

        cls._names = names
        cls.__init__ = __init__
        cls.__eq__ = lambda self, other: type(self) is type(other) and values(self) == values(other)
        cls.__hash__ = lambda self: hash(values(self))
        return cls
    return decorate


def replace(one, **changes):
    """dataclasses.replace of Python 3.7."""
    return type(one)(**dict({name: one.__dict__[name] for name in one._names}, **changes))


def pairwise(values):
    """itertools.pairwise of Python 3.10, of a sequence."""
    return zip(values, values[1:])


def removesuffix(text, suffix):
    """str.removesuffix of Python 3.9."""
    return text[:-len(suffix)] if suffix and text.endswith(suffix) else text
'''
"""A module by the name of `older`, which the lowered modules import."""

_GENERIC: Final = ("dict", "frozenset", "list", "set", "tuple")
_SHIMMED: Final = ("field", "pairwise", "replace")
_TYPING_ONLY: Final = ("typing", "collections.abc")


def lowered(source: str) -> str:
    """Rewrite a module for Python 3.6; comments get lost on the way."""
    tree = _Lowering().visit(ast.parse(source))
    return ast.unparse(ast.fix_missing_locations(tree))


class _Lowering(ast.NodeTransformer):
    """Rewrites what Python 3.6 does not know."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.generic_visit(node)
        node.body.insert(1, ast.parse("import older").body[0])
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        if node.module in (*_TYPING_ONLY, "dataclasses"):
            return None
        node.names = [alias for alias in node.names if alias.name not in _SHIMMED]
        return node if node.names else None

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt] | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        first = node.test.left if isinstance(node.test, ast.Compare) else node.test
        self.generic_visit(node)
        if not isinstance(first, ast.NamedExpr):
            return node
        hoisted = ast.Assign([first.target], first.value)
        if isinstance(node.test, ast.Compare):
            node.test.left = ast.Name(first.target.id, ast.Load())
        else:
            node.test = ast.Name(first.target.id, ast.Load())
        return [hoisted, node]

    def visit_Match(self, node: ast.Match) -> ast.AST:
        """Write a match on values as a chain of comparisons."""
        self.generic_visit(node)
        rest: list[ast.stmt] = []
        for case in reversed(node.cases):
            if isinstance(case.pattern, ast.MatchAs):
                rest = case.body
                continue
            assert isinstance(case.pattern, ast.MatchValue)
            test = ast.Compare(node.subject, [ast.Eq()], [case.pattern.value])
            rest = [ast.If(test, case.body, rest)]
        return rest[0]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        node.args.args = node.args.posonlyargs + node.args.args
        node.args.posonlyargs = []
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name):
                assert decorator.func.id == "dataclass"
                names = [
                    ast.Constant(entry.target.id)
                    for entry in node.body
                    if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)
                ]
                decorator.func = _older("dataclass")
                decorator.args, decorator.keywords = list(names), []
        self.generic_visit(node)
        node.bases = [base for base in node.bases if not (isinstance(base, ast.Name) and base.id == "Protocol")]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        if isinstance(node.annotation, ast.Name) and node.annotation.id == "TypeAlias":
            return ast.Assign([node.target], ast.Constant(None))  # others import it, for their type hints
        self.generic_visit(node)
        return ast.Assign([node.target], node.value)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id in _GENERIC:
            return node.value
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        match ast.unparse(node):
            case "enum.StrEnum":
                return _older("StrEnum")
            case "functools.cache":
                return ast.parse("functools.lru_cache(maxsize=None)", mode="eval").body
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in _SHIMMED:
            node.func = _older(node.func.id)
        if isinstance(node.func, ast.Name) and node.func.id == "zip":
            node.keywords = []  # strict
        if isinstance(node.func, ast.Attribute) and node.func.attr == "removesuffix":
            return ast.Call(_older("removesuffix"), [node.func.value, *node.args], [])
        if ast.unparse(node.func) == "subprocess.run":
            kept = [one for one in node.keywords if one.arg not in ("capture_output", "text")]
            ways = ast.parse("f(stdout=-1, stderr=-1, universal_newlines=True)", mode="eval").body
            assert isinstance(ways, ast.Call)
            node.keywords = ways.keywords + kept
        return node


def _older(name: str) -> ast.Attribute:
    return ast.Attribute(ast.Name("older", ast.Load()), name, ast.Load())
