"""A GGUF file as a model of ours: its spec, and its tensors in our names, still in their blocks."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from flyweight.files import names
from flyweight.files.gguf import GgufFile, GgufTensor
from flyweight.files.gguf_architectures import ARCHITECTURES, row_order, target
from flyweight.files.gguf_keys import described, single
from flyweight.files.published import Findings, check_counts, compare
from flyweight.files.tensors import Kind
from flyweight.spec.errors import ConfigurationError, CorruptFileError, FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.zoo import shapes
from flyweight.zoo.layout import layout

if TYPE_CHECKING:
    from flyweight.files.blocks import Bytes, Floats

# Our own architecture, and the keys that say a spec: docs/gguf.md.
OWN, SPEC, VERSION, NEWEST = "flyweight", "flyweight.spec", "flyweight.version", 1


class Part(NamedTuple):
    """Rows of one of our tensors: all of ``tensor``, in another order where ``order`` says so.

    Row r of the part is row ``order[r]`` of ``tensor.data`` (None: row r). Blocks lie along rows,
    so that rows are moved without being read: ``rows()`` is exact in every format.
    """

    tensor: GgufTensor
    order: array[int] | None

    def rows(self) -> Bytes:
        """(rows, bytes of a row): the file's own view, or a copy where rows change places.

        In a vector, which is one row, it is the numbers that change places.
        """
        data = self.tensor.data
        if self.order is None:
            return data
        if len(self.tensor.shape) == 1:
            return data.reshape(-1, self.tensor.form.size)[self.order].reshape(1, -1)
        return data[self.order]


@dataclass(frozen=True)
class GgufWeight:
    """One of our tensors: the rows of its ``parts``, one part after another.

    ``attention.qkv`` is the queries', the keys' and the values' part where the file has them
    apart, ``feedforward.gate_up`` the gate's and the up's; each may have a format of its own. A
    vector is one row.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def dequantise(self) -> Floats:
        """The numbers, in ``shape``."""
        import numpy as np

        from flyweight.files.blocks import dequantise

        rows = [dequantise(part.rows(), part.tensor.form) for part in self.parts]
        return np.concatenate(rows, axis=None).reshape(self.shape)


class GgufModel(NamedTuple):
    """An opened file. ``spec`` has no sharing where the architecture is one of llama.cpp's.

    ``metadata``: all that the file says, the vocabulary in it (``text.load.gguf_tokenizer``).
    ``notes``: what of it was not used.
    """

    name: str
    architecture: str
    spec: ModelSpec
    weights: Mapping[str, GgufWeight]
    metadata: dict[str, Any]
    notes: tuple[str, ...]


def open_gguf(path: str | os.PathLike[str]) -> GgufModel:
    """Open and check a file of llama.cpp's or of ours; no weight is read yet.

    Raises CorruptFileError or FlyweightError naming the file, and the key or tensor.
    """
    file = GgufFile(path)
    try:
        return _model(file)
    except FlyweightError as error:
        if str(file.path) in str(error):
            raise
        kind = CorruptFileError if isinstance(error, CorruptFileError) else FlyweightError
        raise kind(f"{file.path}: {error}") from None


def _model(file: GgufFile) -> GgufModel:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise CorruptFileError("it does not say general.architecture")
    called = file.metadata.get("general.name")
    name = called if isinstance(called, str) and called else file.path.stem
    notes: tuple[str, ...] = ()
    if architecture == OWN:
        spec = _own_spec(file.metadata)
        if spec is None:
            raise CorruptFileError(f"it is of the architecture {OWN} and has no {SPEC}")
        weights = _own_weights(spec, file)
    else:
        spec, notes = described(architecture, file)
        check_counts(file.path, spec, _kinds(file))
        said = _own_spec(file.metadata)
        if said is not None:
            check_counts(file.path, said, _kinds(file))
            if _says_the_same(said, architecture, file.metadata):
                spec = said
            else:
                notes += (f"{SPEC} contradicts the other keys and was not used",)
        weights = dict(_weights(spec, architecture, file))
    return GgufModel(name, architecture, spec, weights, file.metadata, notes)


def _kinds(file: GgufFile) -> dict[str, Kind]:
    """The tensors' shapes in the words of the other formats; blocks are as good as numbers."""
    return {tensor.name: Kind("F32", tensor.shape) for tensor in file.tensors.values()}


def _own_spec(metadata: Mapping[str, Any]) -> ModelSpec | None:
    text = metadata.get(SPEC)
    if text is None:
        return None
    version = metadata.get(VERSION)
    if type(version) is not int or not 1 <= version <= NEWEST:
        raise FlyweightError(
            f"{VERSION} is {version!r}; {NEWEST} is the newest that this program reads"
        )
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("a table is wanted")
        return ModelSpec.parse(values, SPEC)
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{SPEC} is no JSON: {error}") from None
    except ConfigurationError as error:
        raise CorruptFileError(str(error)) from None


def _says_the_same(spec: ModelSpec, architecture: str, metadata: Mapping[str, Any]) -> bool:
    """Whether the spec is that of an ordinary file with these keys: nobody changed one alone."""
    found = target(spec, architecture)
    if isinstance(found, list) or found.name != architecture or found.expanded != spec:
        return False

    def alike(key: str, value: Any) -> bool:
        there = metadata.get(key)
        if isinstance(value, float):
            return isinstance(there, float) and single(there) == single(value)
        return bool(there == value)

    return all(alike(key, value) for key, value in found.keys.items())


def _own_weights(spec: ModelSpec, file: GgufFile) -> dict[str, GgufWeight]:
    kinds = _kinds(file)
    check_counts(file.path, spec, kinds)
    wanted = {tensor.name: tensor.shape for tensor in shapes.tensors(spec)}
    misshapen = [
        f"{name} is {list(kinds[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in kinds and kinds[name].shape != shape
    ]
    missing, unexpected = wanted.keys() - kinds.keys(), kinds.keys() - wanted.keys()
    _check(Findings(tuple(sorted(missing)), tuple(sorted(unexpected)), tuple(misshapen)))
    return {
        name: GgufWeight(name, shape, (Part(file.tensors[name], None),))
        for name, shape in wanted.items()
    }


def _weights(
    spec: ModelSpec, architecture: str, file: GgufFile
) -> Iterator[tuple[str, GgufWeight]]:
    known = ARCHITECTURES[architecture]
    names_of = layout(known.layout)
    planned = names.plan(spec, names_of)
    _check(compare(planned, names_of, _kinds(file)))
    for each in planned:
        (copy,) = each.copies
        parts = []
        for piece in copy:
            order = row_order(spec, known, piece.name)
            # Theirs from ours; the other way round it is the inverse.
            back = None if order is None else _inverse(order)
            tensor = file.tensors[piece.name]
            if back is not None and len(tensor.shape) == 1 and tensor.form.block > 1:
                raise FlyweightError(f"tensor {piece.name!r}: a bias in {tensor.form.name}")
            parts.append(Part(file.tensors[piece.name], back))
        yield each.name, GgufWeight(each.name, each.shape, tuple(parts))


@lru_cache(maxsize=8)  # a model's queries and its keys
def _inverse(order: tuple[int, ...]) -> array[int]:
    back = array("q", order)
    for place, row in enumerate(order):
        back[row] = place
    return back


def _check(findings: Findings) -> None:
    if not findings.fits:
        raise CorruptFileError(f"its tensors are not those of its model:\n{findings}")
