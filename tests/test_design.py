"""docs/design.md shows the floors that import-linter holds the code to, and the modules that it names are there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
LAYERS = [contract["layers"] for contract in CONTRACTS if contract["type"] == "layers"]
PICTURES = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
FLOOR = re.compile(r"(?:formats|proxy)[\w.]*(?: \| (?:formats|proxy)[\w.]*)*")
MOST_MODULES = {ROOT / "proxy" / "cli": 24}
MOST_LINES = 350


def floors(picture: str) -> list[str]:
    return [found[0] for line in picture.splitlines() if (found := FLOOR.match(line))]


def test_there_is_a_picture_for_each_contract() -> None:
    assert len(PICTURES) == len(LAYERS) == 2


@pytest.mark.parametrize(("picture", "layers"), list(zip(PICTURES, LAYERS, strict=True)))
def test_a_picture_shows_the_floors_of_its_contract(picture: str, layers: list[str]) -> None:
    assert floors(picture) == layers


def test_every_module_has_a_floor() -> None:
    named = {name for layers in LAYERS for layer in layers for name in layer.split(" | ")}
    for package in ("proxy", "formats"):
        rooms = {path for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
        names = {f"{package}.{path.stem}" for path in rooms if path.stem != "__init__"}
        assert names == {name for name in named if name.startswith(f"{package}.")}


def test_what_the_page_names_is_there() -> None:
    for name in re.findall(r"`((?:formats|proxy)/[\w/.]+)`", PAGE):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^    ((?:formats|proxy)\.[\w.]+) ", PAGE, re.MULTILINE):
        assert (ROOT / f"{name.replace('.', '/')}.py").exists(), name


@pytest.mark.parametrize("package", ["proxy", "formats"])
def test_no_room_is_crowded_and_no_module_long(package: str) -> None:
    for folder in (ROOT / package, *(path for path in (ROOT / package).rglob("*") if path.is_dir())):
        modules = list(folder.glob("*.py"))
        assert len(modules) <= MOST_MODULES.get(folder, 16), folder
        for module in modules:
            assert len(module.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, module
