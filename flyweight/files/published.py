"""A checkpoint in its published names, seen as a model of ours: checked, assembled, written.

Nothing is held in memory but the tensor in hand; the files themselves stay mapped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flyweight.files import names
from flyweight.files.names import Piece, Planned
from flyweight.files.tensors import (
    KINDS,
    Kind,
    Tensors,
    dtype_of,
    stream_tensors,
    word_of,
)
from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.zoo.layout import Layout

if TYPE_CHECKING:
    import torch

    from flyweight.files.tensors import Bits


class Findings(NamedTuple):
    """What does not fit between a checkpoint and the model that it should be."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        lines = []
        for kind in ("missing", "unexpected", "misshapen"):
            found = getattr(self, kind)
            lines += [f"{kind} ({len(found)}): {', '.join(grouped(found))}"] if found else []
        return "\n".join(lines)


def grouped(found: Iterable[str]) -> list[str]:
    """Every name, those that differ in the layer's number alone as one: layers.{0-3,5}.norm."""
    groups: dict[str, list[str]] = {}
    for name in found:
        layer = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if layer is None else f"{name[: layer.start()]}{{i}}{name[layer.end() :]}"
        groups.setdefault(pattern, []).append("" if layer is None else layer[0])
    return [p.replace("{i}", _ranges(n) if len(n) > 1 else n[0]) for p, n in groups.items()]


def _ranges(numbers: list[str]) -> str:
    ordered = sorted({int(number) for number in numbers})
    runs: list[list[int]] = []
    for number in ordered:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) + "}"


class Published:
    """The tensors of ``spec`` out of ``source``, whose names and layout are ``layout``'s.

    Behaves as Tensors: ``kinds`` and ``[name]`` are those of our own tensors. Raises
    FlyweightError that names every tensor which is missing, unexpected or of another shape.
    """

    def __init__(
        self,
        where: Path,
        spec: ModelSpec,
        layout: Layout,
        source: Tensors,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.where, self.layout, self.source = where, layout, source
        check_counts(where, spec, source.kinds)
        chosen = names.choose(layout, options or {})
        self.spec = names.with_options(spec, chosen)
        planned = names.plan(self.spec, layout, chosen)
        if layout.prefix and not any(name.startswith(layout.prefix) for name in source.kinds):
            planned = names.without_prefix(planned, layout.prefix)
        self.findings = compare(planned, layout, source.kinds)
        if not self.findings.fits:
            raise FlyweightError(
                f"{where} is not the model that it should be, by the names of `{layout.name}`:\n"
                f"{self.findings}\n"
                "a model of another architecture is named with --like"
            )
        self._planned = {p.name: p._replace(copies=_there(p, source)) for p in planned}
        self.kinds: dict[str, Kind] = {n: self._kind(p) for n, p in self._planned.items()}
        self._check_copies()

    def __getitem__(self, name: str) -> torch.Tensor:
        import numpy as np
        import torch

        kind, bits = self.kinds[name], self.bits(name)
        # torch has no arrays that it must not write to.
        bits = bits if bits.flags.writeable else bits.copy()
        return torch.from_numpy(np.ascontiguousarray(bits)).view(dtype_of(kind))

    def bits(self, name: str) -> Bits:
        return self._assembled(self._planned[name].copies[0], self.kinds[name])

    def _kind(self, planned: Planned) -> Kind:
        dtypes = {self.source.kinds[p.name].dtype for copy in planned.copies for p in copy}
        odd = sorted(dtypes - KINDS.keys())
        if odd or len(dtypes) > 1:
            what = f"come as {' and '.join(sorted(dtypes))}"
            pieces = ", ".join(piece.name for piece in planned.copies[0])
            raise FlyweightError(
                f"{self.where}: {pieces} {what}; one of {', '.join(KINDS)} for all is wanted"
            )
        return Kind(dtypes.pop(), planned.shape)

    def _assembled(self, copy: tuple[Piece, ...], kind: Kind) -> Bits:
        first = self.source.bits(copy[0].name)
        if len(copy) == 1 and len(copy[0].segments) == 1:
            return first.T if copy[0].transposed else first
        import numpy as np

        made = np.empty(kind.shape, dtype=word_of(kind))
        for piece in copy:
            theirs = self.source.bits(piece.name)
            theirs = theirs.T if piece.transposed else theirs
            for ours, at, rows in piece.segments:
                made[ours : ours + rows] = theirs[at : at + rows]
        return made

    def _check_copies(self) -> None:
        """Copies of one body must be equal, bit for bit, before one of them stands for all."""
        for planned in self._planned.values():
            first = planned.copies[0]
            for copy in (*planned.copies[1:], *planned.duplicates):
                for one, other in zip(first, copy, strict=True):
                    if other.name not in self.source.kinds or one.name == other.name:
                        continue
                    if not same_bits(self.source, one.name, other.name):
                        raise FlyweightError(
                            f"{self.where}: {one.name} and {other.name} should be one tensor and"
                            " differ: the sharing that this model is named for is not in its"
                            " weights"
                        )

    def tied(self) -> Iterator[str]:
        """Which of our tensors stand for more than one published tensor, for a report."""
        for planned in self._planned.values():
            there = [c for c in planned.duplicates if c[0].name in self.source.kinds]
            if len(planned.copies) + len(there) > 1:
                count = len(planned.copies) + len(there)
                yield f"{planned.name}: {count} equal copies"

    def write(self, path: Path) -> None:
        """Our own model.safetensors, a tensor in memory at a time."""
        stream_tensors(path, self.kinds, self)


def check_counts(where: Path, spec: ModelSpec, kinds: Mapping[str, Kind]) -> None:
    """Before a plan is made of what may be any number: layers and heads that cannot be there."""
    most = len(kinds)
    # A body that runs many times may be stored once.
    encoder = spec.encoder.depth if spec.encoder else 0
    if max(encoder + spec.depth, spec.uses // 64) > most:
        raise FlyweightError(
            f"{where} has {most} tensors, too few for the {encoder + spec.uses} layers that it"
            " should have"
        )
    widest = max((length for kind in kinds.values() for length in kind.shape), default=0)
    if max(spec.attention.heads, spec.head_dim) > widest:
        raise FlyweightError(
            f"{where} has no tensor wide enough for the {spec.attention.heads} heads of"
            f" {spec.head_dim} dimensions that it should have"
        )


def _there(planned: Planned, source: Tensors) -> tuple[tuple[Piece, ...], ...]:
    return tuple(c for c in planned.copies if all(p.name in source.kinds for p in c))


def compare(planned: list[Planned], layout: Layout, kinds: Mapping[str, Kind]) -> Findings:
    """What a checkpoint with tensors of these ``kinds`` lacks, has too many, or has otherwise.

    Of a shared body's copies one is enough where all others are absent: safetensors leaves out
    what is one tensor in memory.
    """
    missing, misshapen, known = [], [], set()
    for each in planned:
        copies = [[p.name in kinds for p in copy] for copy in each.copies]
        whole = sum(all(copy) for copy in copies)
        if not (whole == 1 and sum(any(copy) for copy in copies) == 1) and whole < len(copies):
            missing += [p.name for c in each.copies for p in c if p.name not in kinds]
        for piece in (p for c in (*each.copies, *each.duplicates) for p in c):
            known.add(piece.name)
            have = kinds.get(piece.name)
            if have is not None and have.shape != piece.shape:
                misshapen.append(f"{piece.name} is {list(have.shape)}, not {list(piece.shape)}")
    extra = kinds.keys() - known
    harmless = names.ignored(layout, extra)
    return Findings(
        tuple(dict.fromkeys(missing)),
        tuple(sorted(extra - harmless)),
        tuple(misshapen),
        tuple(sorted(harmless)),
    )


def same_bits(source: Tensors, first: str, second: str) -> bool:
    """Whether two tensors are equal bit for bit, of one type and shape."""
    import numpy as np

    same = source.kinds[first] == source.kinds[second]
    return same and np.array_equal(source.bits(first), source.bits(second))
