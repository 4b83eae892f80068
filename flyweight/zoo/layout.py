"""How a family's published checkpoints name and lay out their tensors: a TOML file for each.

``layouts/NAME.toml`` holds a table ``[names]``. A key is our tensor's name, a value the published
one; ``{i}`` is the number of a layer, ``*`` is ``weight`` or ``bias``. Where several published
tensors make up one of ours, the value is a list of parts, ``{ name = ..., holds = ... }``:

- ``holds`` says which row groups lie in the part, in its own order: "q", "k" and "v" of
  ``attention.qkv``, "gate" and "up" of ``feedforward.gate_up``; "k v by head" lays the rows of
  one head of each in turn, "q v k in 4" those of a fourth of the heads. Nothing means all of ours
  as it is.
- ``transposed``: matrices lie as (inputs, outputs), as in GPT-2's Conv1D.

A table ``[copies]`` lists, by our name, further names under which a checkpoint may hold the tensor
again; they are compared, and not needed.

``blocks = "once"`` says that a block which runs several times is stored once; otherwise every run,
and every use of a shared feed-forward, has tensors of its own, which are equal.

``[options]`` are what cannot be known from the outside: each option has named choices, the first
of them the likeliest. A choice is a text that ``holds = "$OPTION"`` stands for, or a table of
changes to the model's spec.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal

from flyweight.spec.errors import ConfigurationError
from flyweight.spec.reading import Before
from flyweight.spec.table import Table, field, nearest

# What a layout that is `like` another takes from it as it is; names are laid over names.
_INHERITED = ("prefix", "blocks", "copies", "ignored", "options")


class Part(Table):
    """A published tensor, or the share of it that makes up one of ours."""

    name: str
    holds: str | None = None
    transposed: bool = False


def _written_short(names: Any) -> Any:
    """``"ours" = "theirs"`` for one part that holds all; one table for a list of one."""
    return {key: _parts(value) for key, value in names.items()}


def _parts(value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    return [{"name": each} if isinstance(each, str) else each for each in values]


class Layout(Table):
    """Published names.

    ``families``: those of the zoo that have them. ``prefix``: what a checkpoint of the bare
    decoder leaves out. ``ignored``: tensors that hold nothing which the spec does not say.
    """

    name: str
    like: str | None = None
    families: tuple[str, ...] = ()
    prefix: str = ""
    blocks: Literal["once", "each use"] = "each use"
    names: Annotated[dict[str, tuple[Part, ...]], Before(_written_short)]
    copies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    options: dict[str, dict[str, str | dict[str, Any]]] = field(default_factory=dict)


@cache
def layouts() -> tuple[str, ...]:
    """The name of every layout, sorted."""
    files = (f.name for f in resources.files("flyweight.zoo").joinpath("layouts").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))


@cache
def layout(name: str) -> Layout:
    """The layout called ``name``. Raises ConfigurationError naming the nearest known one."""
    if name not in layouts():
        raise ConfigurationError(
            f"no published names of a family `{name}`{nearest(name, list(layouts()))}"
        )
    file = resources.files("flyweight.zoo").joinpath("layouts", f"{name}.toml")
    values = {"name": name, **tomllib.loads(file.read_text(encoding="utf-8"))}
    if "like" in values:
        base = layout(values["like"])
        inherited = {key: getattr(base, key) for key in _INHERITED}
        names = {key: [part.values() for part in parts] for key, parts in base.names.items()}
        values = {**inherited, **values, "names": names | values.get("names", {})}
    return Layout.parse(values, where=f"layouts/{name}.toml")


def of_family(family: str) -> Layout | None:
    """The layout of a family of the zoo; None where nothing was published."""
    return next((layout(name) for name in layouts() if family in layout(name).families), None)
