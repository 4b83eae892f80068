"""From our tensors to published ones and back: renames, splits, joins, transpositions, ties.

A plan lists for every tensor of ours the published tensors that hold it. The same plan serves
import (ours is assembled from theirs) and export (theirs from ours), and needs no torch to make.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.spec.table import nearest
from flyweight.zoo import shapes
from flyweight.zoo.layout import Layout, Part

Shape = tuple[int, ...]
_LAYER = "blocks.{i}."


class Segment(NamedTuple):
    """``rows`` rows that begin at row ``ours`` of our tensor and at row ``theirs`` of theirs."""

    ours: int
    theirs: int
    rows: int


class Piece(NamedTuple):
    """A published tensor of ``shape``; rows are counted after the transposition, if any."""

    name: str
    shape: Shape
    transposed: bool
    segments: tuple[Segment, ...]


class Planned(NamedTuple):
    """One tensor of ours. Each copy, a tuple of pieces, holds all of it; all copies are equal.

    ``duplicates`` are copies that a checkpoint may have besides: a tied head, and what a layout
    lists as copies.
    """

    name: str
    shape: Shape
    copies: tuple[tuple[Piece, ...], ...]
    duplicates: tuple[tuple[Piece, ...], ...] = ()


def choose(layout: Layout, options: Mapping[str, str]) -> dict[str, str | dict[str, Any]]:
    """What each option of the layout stands for, given the name of a choice for every one."""
    for name, choice in options.items():
        known = layout.options.get(name)
        if known is None:
            have = nearest(name, list(layout.options)) or "; it has none"
            raise ConfigurationError(f"`{layout.name}` has no option `{name}`{have}")
        if choice not in known:
            raise ConfigurationError(f"option {name} = {choice}{nearest(choice, list(known))}")
    open_ = [f"{n} ({' or '.join(c)})" for n, c in layout.options.items() if n not in options]
    if open_:
        raise FlyweightError(
            f"nothing says how `{layout.name}` lays out: {', '.join(open_)}; choose each with"
            " --option NAME=CHOICE, or let --fit TEXT find what suits a text best"
        )
    return {name: layout.options[name][choice] for name, choice in options.items()}


def with_options(spec: ModelSpec, chosen: Mapping[str, str | dict[str, Any]]) -> ModelSpec:
    """The spec with the changes that the chosen options make to it."""
    values = spec.values()
    for change in chosen.values():
        for table, keys in change.items() if isinstance(change, dict) else ():
            values[table] = {**values[table], **keys}
    return ModelSpec.parse(values, "model")


def plan(
    spec: ModelSpec, layout: Layout, chosen: Mapping[str, str | dict[str, Any]] | None = None
) -> list[Planned]:
    """Where every tensor of ``spec`` lies in a checkpoint of this layout.

    Raises FlyweightError where the layout has no name for one of them.
    """
    planner = _Planner(spec, layout, chosen or {})
    return [planner.planned(tensor) for tensor in shapes.tensors(spec)]


def without_prefix(planned: Iterable[Planned], prefix: str) -> list[Planned]:
    """The plan for a checkpoint of the bare decoder, whose names lack ``prefix``."""

    def bare(copies: tuple[tuple[Piece, ...], ...]) -> tuple[tuple[Piece, ...], ...]:
        return tuple(
            tuple(piece._replace(name=piece.name.removeprefix(prefix)) for piece in copy)
            for copy in copies
        )

    return [p._replace(copies=bare(p.copies), duplicates=bare(p.duplicates)) for p in planned]


def ignored(layout: Layout, names: Iterable[str]) -> set[str]:
    """Which of ``names`` hold nothing that the spec does not say."""
    patterns = [p for full in layout.ignored for p in (full, full.removeprefix(layout.prefix))]
    alike = [re.escape(p).replace(r"\{i\}", r"\d+") for p in patterns]
    return {name for name in names if any(re.fullmatch(p, name) for p in alike)}


class _Planner:
    def __init__(self, spec: ModelSpec, layout: Layout, chosen: Mapping[str, Any]) -> None:
        self.spec, self.layout, self.chosen = spec, layout, chosen
        head, hidden = spec.head_dim, spec.feedforward.hidden
        names = [tensor.name for tensor in shapes.tensors(spec)]
        own = {name.split(".")[1] for name in names if ".feedforward." in name}
        self.lent = [i for i in range(spec.depth) if str(i) not in own]
        # Row groups of our fused tensors, in our order, and how many heads each spans.
        self.groups = {
            "attention.qkv": {
                "q": (spec.attention.heads, head),
                "k": (spec.kv_heads, head),
                "v": (spec.kv_heads, head),
            },
            "feedforward.gate_up": {"gate": (1, hidden), "up": (1, hidden)},
        }
        self.groups["cross_attention.qkv"] = self.groups["attention.qkv"]

    def planned(self, tensor: shapes.Tensor) -> Planned:
        name, layers = self._at(tensor.name)
        parts, leaf = self._parts(name)
        copies = tuple(
            tuple(self._piece(name, part, leaf, layer, tensor.shape) for part in parts)
            for layer in layers
        )
        again = (Part(name=other) for other in self.layout.copies.get(tensor.name, ()))
        duplicates = tuple((self._piece(name, part, leaf, 0, tensor.shape),) for part in again)
        if tensor.name == "embedding.weight" and self.spec.tie_embeddings:
            head, leaf = self._parts("head.weight")
            piece = self._piece("head.weight", head[0], leaf, 0, tensor.shape)
            duplicates += ((piece,),)
        return Planned(tensor.name, tensor.shape, copies, duplicates)

    def _at(self, name: str) -> tuple[str, list[int]]:
        """The name with ``{i}`` for its layer, and the published layers that hold the tensor."""
        shared = name.startswith("shared_feedforward.")
        found = re.match(r"(|encoder\.)blocks\.(\d+)\.(.*)", name)
        if found and found[1]:
            return f"{found[1]}{_LAYER}{found[3]}", [int(found[2])]
        if shared:
            rest, blocks = "feedforward." + name.partition(".")[2], self.lent
        elif found:
            rest, blocks = found[3], [int(found[2])]
        else:
            return name, [0]
        if self.layout.blocks == "once":
            return _LAYER + rest, blocks
        repeat = self.spec.share.repeat
        return _LAYER + rest, [b * repeat + use for b in blocks for use in range(repeat)]

    def _parts(self, name: str) -> tuple[tuple[Part, ...], str]:
        stem, _, leaf = name.rpartition(".")
        for key in (name, f"{stem}.*"):
            if key in self.layout.names:
                return self.layout.names[key], leaf
        raise FlyweightError(
            f"`{self.layout.name}` has no name for our tensor {name.replace('{i}', '0')}"
        )

    def _piece(self, ours: str, part: Part, leaf: str, layer: int, shape: Shape) -> Piece:
        name = part.name.replace("{i}", str(layer)).replace("*", leaf)
        segments = (
            tuple(self._segments(ours, part.holds)) if part.holds else (Segment(0, 0, shape[0]),)
        )
        theirs = (sum(segment.rows for segment in segments), *shape[1:])
        turned = part.transposed and len(shape) == 2
        return Piece(name, theirs[::-1] if turned else theirs, turned, segments)

    def _segments(self, ours: str, holds: str) -> Iterator[Segment]:
        if holds.startswith("$"):
            holds = self.chosen[holds[1:]]
        order, _, cut = holds.partition(" by head")[0].partition(" in ")
        words = order.split()
        groups = next(g for tensor, g in self.groups.items() if f".{tensor}." in ours)
        start, at = {}, 0
        for group, (heads, rows) in groups.items():
            start[group] = at
            at += heads * rows
        runs = groups[words[0]][0] if holds.endswith(" by head") else int(cut or 1)
        if any(groups[word][0] % runs for word in words):
            raise FlyweightError(
                f"`{self.layout.name}` lays out heads in {runs} groups;"
                f" {groups[words[0]][0]} heads cannot be divided so"
            )
        at = 0
        for run in range(runs):
            for word in words:
                heads, rows = groups[word]
                part = heads // runs * rows
                yield Segment(start[word] + run * part, at, part)
                at += part
