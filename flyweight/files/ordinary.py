"""What a model must be for programs that know ordinary architectures."""

from __future__ import annotations

from collections.abc import Iterator

from flyweight.spec.model import ModelSpec


def expand(spec: ModelSpec) -> ModelSpec:
    """The same model with a body for every use."""
    values = spec.values()
    values["depth"] = spec.uses
    values.pop("share", None)
    return ModelSpec.parse(values)


def ours_alone(spec: ModelSpec) -> Iterator[str]:
    """The parts of ``spec`` that no such program has, shared or expanded."""
    if spec.input.kind != "tokens":
        yield f"input.kind = '{spec.input.kind}'"
    if spec.ngrams is not None:
        yield "ngrams"
    if spec.matches is not None:
        yield "matches"
    if spec.ahead:
        yield "ahead"
    if spec.share.lora_rank:
        yield "share.lora_rank"
    if not spec.norm.gain:
        yield "norm.gain = false"
