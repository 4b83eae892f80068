"""The zoo's entries: names, and the spec behind each."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from flyweight.spec.errors import ConfigurationError
from flyweight.spec.model import ModelSpec
from flyweight.spec.table import Table, nearest
from flyweight.zoo.shapes import Counts, parameters

__all__ = ["Counts", "ZooEntry", "get", "names", "parameters"]


@dataclass(frozen=True)
class ZooEntry:
    """A published model: its architecture, and where its paper is."""

    name: str
    family: str
    paper: str
    spec: ModelSpec


class _File(Table):
    name: str
    family: str
    paper: str
    model: ModelSpec


@cache
def names() -> tuple[str, ...]:
    """Every model of the zoo, sorted."""
    files = (file.name for file in resources.files("flyweight.zoo").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))


@cache
def get(name: str) -> ZooEntry:
    """The entry called ``name``. Raises ConfigurationError naming the nearest known one."""
    if name not in names():
        raise ConfigurationError(f"no model `{name}` in the zoo{nearest(name, list(names()))}")
    text = resources.files("flyweight.zoo").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    file = _File.parse(tomllib.loads(text), where=f"{name}.toml")
    assert file.name == name, f"{name}.toml calls itself {file.name}"
    return ZooEntry(file.name, file.family, file.paper, file.model)
