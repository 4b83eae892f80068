"""RoPE in a config.json: its two spellings, and how each kind of scaling is written there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flyweight.files.config_keys import Keys
from flyweight.spec.errors import FlyweightError
from flyweight.spec.position import longrope_gain


def rope_position(config: Keys, context: int) -> dict[str, Any]:
    """``rope_parameters``, or, before transformers 5, ``rope_theta`` beside ``rope_scaling``."""
    newer, older = config.table("rope_parameters"), config.table("rope_scaling")
    both = {**older, **newer}
    inner = Keys(both, f"{config.path}: rope_parameters")
    theta = config.number("rope_theta", default=10_000.0)
    fraction = config.number("partial_rotary_factor", default=1.0)
    position: dict[str, Any] = {"kind": "rope", "theta": inner.number("rope_theta", default=theta)}
    fraction = inner.number("partial_rotary_factor", default=fraction)
    if fraction != 1.0:
        position["fraction"] = fraction
    kind = inner.find(("rope_type", "type")) or "default"
    before = config.values.get("original_max_position_embeddings")
    config.read.add("original_max_position_embeddings")
    read = _SCALINGS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise FlyweightError(
            f"{config.path}: rope_type = {kind!r} is not supported; known: {', '.join(_SCALINGS)}"
        )
    scaling = read(inner, context, before)
    left = inner.unused()
    if left:
        raise FlyweightError(f"{inner.path}: {', '.join(left)} is not known for rope_type {kind}")
    return position | ({"scaling": scaling} if scaling else {})


def _original(rope: Keys, before: Any) -> int:
    """Phi-3's configuration says the original length outside of the table, others within it."""
    if rope.values.get("original_max_position_embeddings") is None and before is not None:
        rope.values["original_max_position_embeddings"] = before
    return rope.whole("original_max_position_embeddings")


def _default_rope(rope: Keys, context: int, before: Any) -> dict[str, Any]:
    rope.read.add("original_max_position_embeddings")
    return {}


def _linear_rope(rope: Keys, context: int, before: Any) -> dict[str, Any]:
    return {"kind": "linear", "factor": rope.number("factor")}


def _dynamic_rope(rope: Keys, context: int, before: Any) -> dict[str, Any]:
    # transformers counts from the configuration's context, whatever the table says besides.
    rope.read.add("original_max_position_embeddings")
    return {"kind": "dynamic", "factor": rope.number("factor"), "original": context}


def _llama3_rope(rope: Keys, context: int, before: Any) -> dict[str, Any]:
    return {
        "kind": "llama3",
        "factor": rope.number("factor"),
        "low": rope.number("low_freq_factor"),
        "high": rope.number("high_freq_factor"),
        "original": _original(rope, before),
    }


def _longrope(rope: Keys, context: int, before: Any) -> dict[str, Any]:
    scaling: dict[str, Any] = {"kind": "longrope", "original": _original(rope, before)}
    for name in ("short", "long"):
        factors = rope.find((f"{name}_factor",))
        if not isinstance(factors, list):
            raise FlyweightError(f"{rope.path} does not have the list `{name}_factor`")
        scaling[name] = factors
    if rope.values.get("attention_factor") is not None:
        scaling["attention"] = rope.number("attention_factor")
    elif rope.values.get("factor") is not None:
        # A factor beside the lists is the lengthening that the attention's gain follows from.
        factor = rope.number("factor")
        if factor != context / scaling["original"]:
            scaling["attention"] = longrope_gain(factor, scaling["original"])
    rope.read.update(("attention_factor", "factor"))
    for name in ("short_mscale", "long_mscale"):
        if rope.values.get(name) is not None:
            raise FlyweightError(f"{rope.path}: {name} is not supported")
    return scaling


_SCALINGS: dict[str, Callable[[Keys, int, Any], dict[str, Any]]] = {
    "default": _default_rope,
    "linear": _linear_rope,
    "dynamic": _dynamic_rope,
    "llama3": _llama3_rope,
    "longrope": _longrope,
    # What Phi-3 called it first.
    "su": _longrope,
}
