"""A model of ours as a GGUF file: an ordinary one where llama.cpp knows the architecture.

Otherwise, and where sharing is to be kept, one of the architecture "flyweight": docs/gguf.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flyweight.files import names
from flyweight.files.blocks import Floats
from flyweight.files.formats import FORMATS
from flyweight.files.from_gguf import NEWEST, OWN, SPEC, VERSION
from flyweight.files.gguf_architectures import Target, row_order, target
from flyweight.files.gguf_types import FILE_TYPES, Types
from flyweight.files.gguf_writer import Written, write_gguf
from flyweight.files.huggingface import read_json, refuse_existing
from flyweight.files.published import grouped
from flyweight.files.tensors import Tensors
from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.spec.model import ModelSpec, Share
from flyweight.spec.table import nearest
from flyweight.text.gguf_metadata import read_metadata
from flyweight.text.gguf_tokens import vocabulary
from flyweight.text.tokenizer import Tokenizer
from flyweight.zoo import shapes
from flyweight.zoo.layout import layout

if TYPE_CHECKING:
    import torch

Index = slice | NDArray[np.intp]


class Source(Protocol):
    """A model's tensors in our names, of which some rows are asked for at a time."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def rows(self, name: str, index: Index) -> Floats:
        """float32 (rows, columns); a vector is one row."""
        ...


class StoredSource:
    """The stored tensors of a model, the one in hand kept open."""

    def __init__(self, weights: Tensors) -> None:
        self._weights = weights
        self.shapes = {name: kind.shape for name, kind in weights.kinds.items()}
        self._name = ""
        self._tensor: torch.Tensor | None = None

    def rows(self, name: str, index: Index) -> Floats:
        if self._tensor is None or name != self._name:
            self._tensor = None
            self._name, self._tensor = name, self._weights[name].detach()
        tensor = self._tensor[None] if self._tensor.ndim == 1 else self._tensor
        made: Floats = tensor[index].float().numpy()
        return made


class Exported(NamedTuple):
    """What was written: the architecture, its notes, bytes of all tensors."""

    architecture: str
    notes: tuple[str, ...]
    bytes: int


def export_gguf(
    spec: ModelSpec,
    source: Source,
    tokenizer: Tokenizer,
    out: Path,
    name: str,
    type: str = "f16",
    family: str = "",
    expand: bool = False,
    template: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write ``out``, which must not exist: whole or not at all.

    ``expand``: an ordinary file even where that repeats shared tensors. ``template``: the chat
    template, as Jinja. Raises FlyweightError where ``expand`` asks for what is not possible.
    """
    if type not in FILE_TYPES:
        raise FlyweightError(f"--type {type}{nearest(type, list(FILE_TYPES))}")
    refuse_existing(out)
    _check(spec, source)
    found = target(spec, family)
    shared = spec.share != Share()
    notes: list[str] = []
    if isinstance(found, list):
        reasons = "; ".join(found)
        if expand:
            raise FlyweightError(
                f"no architecture of llama.cpp computes this model: {reasons}. Leave out --expand"
                " for a file that Flyweight runs"
            )
        notes.append(f"for Flyweight alone: llama.cpp has no architecture for {reasons}")
    elif shared and not expand:
        notes.append(
            "shared tensors are stored once, for Flyweight; --expand repeats them for llama.cpp"
        )
    ordinary = None if isinstance(found, list) or (shared and not expand) else found
    kept = spec if ordinary is None else ordinary.expanded
    types = Types(type, spec.depth if ordinary is None else kept.depth, kept.tie_embeddings)
    if ordinary is None:
        tensors = list(_own_tensors(spec, source, types))
    else:
        tensors = list(_tensors(spec, source, ordinary, types))
    words = vocabulary(tokenizer, spec.vocab_size)
    notes += [*_replaced(types), *words.notes]
    if template is not None:
        words.keys["tokenizer.chat_template"] = template
    metadata: dict[str, Any] = {"general.architecture": OWN} if ordinary is None else ordinary.keys
    metadata |= {
        "general.name": name,
        "general.file_type": FILE_TYPES[type],
        "general.quantization_version": 2,
        VERSION: NEWEST,
        SPEC: json.dumps(kept.values(), ensure_ascii=False),
    }
    write_gguf(out, metadata | words.keys, tensors, progress)
    architecture = metadata["general.architecture"]
    return Exported(architecture, tuple(notes), sum(t.bytes for t in tensors))


def chat_template(tokenizer: Path) -> str | None:
    """The template beside a tokenizer, or in its GGUF file, if there is one."""
    if tokenizer.suffix == ".gguf":
        kept = read_metadata(tokenizer, "tokenizer.chat_template").get("tokenizer.chat_template")
        return kept if isinstance(kept, str) else None
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    found = read_json(config).get("chat_template") if config.is_file() else None
    return found if isinstance(found, str) else None


def _check(spec: ModelSpec, source: Source) -> None:
    for tensor in shapes.tensors(spec):
        have = source.shapes.get(tensor.name)
        if have != tensor.shape:
            what = "lack it" if have is None else f"have {list(have)}"
            raise CorruptFileError(
                f"{tensor.name} of {list(tensor.shape)} is wanted by the spec, and the weights"
                f" {what}"
            )


def _own_tensors(spec: ModelSpec, source: Source, types: Types) -> Iterator[Written]:
    for tensor in shapes.tensors(spec):
        form = types(tensor.name, tensor.name, tensor.shape)
        length = tensor.shape[0] if len(tensor.shape) == 1 else 0
        rows = _Rows(source, tensor.name, length=length)
        yield Written(tensor.name, tensor.shape, form, rows)


def _tensors(spec: ModelSpec, source: Source, ordinary: Target, types: Types) -> Iterator[Written]:
    expanded, architecture = ordinary.expanded, ordinary.architecture
    # Our own names, and a body for every use in theirs.
    values = spec.values() | {"tie_embeddings": expanded.tie_embeddings}
    for each in names.plan(ModelSpec.parse(values), layout(architecture.layout)):
        ours, factor = each.name, 1.0
        if architecture.folds and ours == "embedding.weight":
            factor = spec.scale.embedding
        if ours == "head.weight":
            factor = spec.scale.logits if architecture.folds else 1.0
            # A head that the architecture wants apart is made of the embeddings.
            ours = "embedding.weight" if spec.tie_embeddings else ours
        for piece in (piece for copy in each.copies for piece in copy):
            (segment,) = piece.segments
            order = row_order(expanded, architecture, piece.name)
            form = types(each.name, piece.name, piece.shape)
            length = piece.shape[0] if len(piece.shape) == 1 else 0
            places = None if order is None else np.array(order)
            rows = _Rows(source, ours, segment.ours, places, factor, length)
            yield Written(piece.name, piece.shape, form, rows)
    for name, numbers in ordinary.tensors.items():
        vector = np.asarray(numbers, dtype=np.float32)
        yield Written(name, vector.shape, FORMATS["f32"], partial(_constant, vector))


@dataclass(frozen=True)
class _Rows:
    """The rows of a written tensor: those of ours from ``first`` on, in ``order``, scaled."""

    source: Source
    name: str
    first: int = 0
    order: NDArray[np.intp] | None = None
    factor: float = 1.0
    # A vector's numbers; a vector counts as one row.
    length: int = 0

    def __call__(self, at: int, until: int) -> Floats:
        if self.length:
            whole = self.source.rows(self.name, slice(None))
            made = whole[:, self._index(0, self.length)]
        else:
            made = self.source.rows(self.name, self._index(at, until))
        return made if self.factor == 1.0 else made * np.float32(self.factor)

    def _index(self, at: int, until: int) -> Index:
        if self.order is None:
            return slice(self.first + at, self.first + until)
        return self.first + self.order[at:until]


def _constant(vector: Floats, at: int, until: int) -> Floats:
    return vector[None]


def _replaced(types: Types) -> Iterator[str]:
    for (wanted, got), found in types.instead.items():
        block = FORMATS[wanted].block
        yield (
            f"{got} instead of {wanted}, as rows are no multiple of {block}:"
            f" {', '.join(grouped(found))}"
        )
