"""The import directions of the package: a room imports only what lies to its right or below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "flyweight"

# From the top of the house to its foundation; within a line, from left to right.
LINES = (
    ("cli",),
    ("serve", "report"),
    ("papers",),
    ("tune", "train"),
    ("compress", "laws", "load"),
    ("engine", "model"),
    ("measure", "data"),
    ("files", "text"),
    ("zoo", "spec"),
)
PLACE = {room: (line, i) for line, rooms in enumerate(LINES) for i, room in enumerate(rooms)}
# They meet in a file and in parity tests.
STRANGERS = {("engine", "model"), ("model", "engine")}
# Rooms that run where PyTorch is not installed, and those that know a model by its protocol alone.
WITHOUT_TORCH = {"spec", "zoo", "text", "engine", "measure", "serve", "report", "cli"}


class Import(NamedTuple):
    line: int
    module: str


def imports(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every module that ``source`` imports, wherever in it, as absolute dotted names.

    ``from a import b`` yields ``a.b``: b may be a module of its own.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                yield Import(node.lineno, f"{base}.{alias.name}")
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func)
            argument = node.args[0]
            if called in ("import_module", "importlib.import_module", "__import__"):
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield Import(node.lineno, argument.value)


def complaint(room: str, imported: str) -> str | None:
    """Why ``room`` may not import the module ``imported``; None where it may."""
    parts = imported.split(".")
    if parts[0] == "torch":
        return f"`{room}` works without PyTorch" if room in WITHOUT_TORCH else None
    if parts[0] != "flyweight":
        return None
    other = parts[1] if len(parts) > 1 else ""
    if other == "__version__":
        return None
    if other not in PLACE:
        return f"a room imports from rooms, not from the package's face (`{imported}`)"
    if room == other:
        return None
    if (room, other) in STRANGERS:
        return f"`{room}` and `{other}` never import each other"
    if PLACE[room] > PLACE[other]:
        return f"`{other}` is not to the right of or below `{room}`"
    return None


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_lies_in_a_room_that_the_map_knows() -> None:
    rooms = {room_of(path) for path in modules()} - {"__init__", "__main__"}
    assert rooms <= PLACE.keys(), f"not on the map: {sorted(rooms - PLACE.keys())}"
    assert {"cli", "spec", "zoo", "text", "model"} <= rooms


def test_rooms_import_only_to_the_right_and_downwards() -> None:
    found = []
    for path in modules():
        room = room_of(path)
        if room not in PLACE:
            continue
        inside = path.relative_to(PACKAGE.parent).with_suffix("")
        is_package = path.name == "__init__.py"
        name = ".".join(inside.parts[:-1] if is_package else inside.parts)
        for line, module in imports(path.read_text(encoding="utf-8"), name, is_package):
            if reason := complaint(room, module):
                found.append(f"{path.relative_to(PACKAGE.parent)}:{line} {module}: {reason}")
    assert not found, "imports against the house's directions:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("flyweight.spec.model", "from flyweight.text import load", "flyweight.text.load"),
        ("flyweight.data.order", "def f():\n    import flyweight.train", "flyweight.train"),
        ("flyweight.model.decoder", "from ..engine.program import run", None),
        ("flyweight.files.run", "from .. import data", "flyweight.data"),
        ("flyweight.text.load", "if 1:\n    from torch import nn", "torch.nn"),
        ("flyweight.report.page", "import importlib\nimportlib.import_module('torch')", "torch"),
        ("flyweight.zoo.catalog", "from flyweight import load", "flyweight.load"),
        ("flyweight.zoo.catalog", "from flyweight import FlyweightError", None),
        ("flyweight.model.cache", "from flyweight.load import load", None),
    ],
)
def test_the_check_sees_what_is_forbidden(module: str, source: str, expected: str | None) -> None:
    refused = [name for _, name in imports(source, module) if complaint(module.split(".")[1], name)]
    assert len(refused) == 1
    assert expected is None or refused == [expected]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("flyweight.train.loop", "import torch\nfrom flyweight.measure.bits import measure"),
        ("flyweight.tune.sft", "from flyweight.train import loop"),
        ("flyweight.files.names", "from flyweight.text.load import load_tokenizer"),
        ("flyweight.cli.main", "from flyweight import __version__"),
        ("flyweight.spec.toml", "from .errors import ConfigurationError\nimport json"),
    ],
)
def test_the_check_lets_pass_what_is_allowed(module: str, source: str) -> None:
    room = module.split(".")[1]
    assert [name for _, name in imports(source, module) if complaint(room, name)] == []
