"""Which of llama.cpp's architectures computes what a spec describes, and what its file says.

What none computes is said by name; such a model goes into a file of the architecture "flyweight"
(docs/gguf.md). The facts are those of llama.cpp's `src/models` and its converters.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from flyweight.files.ordinary import expand, ours_alone
from flyweight.spec.frequencies import exact_frequencies
from flyweight.spec.model import ModelSpec, Scale
from flyweight.spec.position import (
    DynamicScaling,
    LinearScaling,
    LongRope,
    Position,
)

# A pair of dimensions whose angles are divided by this does not turn.
STILL = 1e30


class Architecture(NamedTuple):
    """One of llama.cpp's. ``layout``: its names. ``pairs``: it turns neighbouring dimensions, so
    that rows of queries and keys whose pairs lie half a head apart are permuted. ``folds``: it
    has no multipliers, and those of embeddings and logits go into the weights."""

    refusals: Callable[[ModelSpec], Iterator[str]]
    keys: Callable[[ModelSpec], dict[str, Any]]
    layout: str
    pairs: bool = False
    folds: bool = False


class Target(NamedTuple):
    """What an ordinary file becomes. ``keys``: its metadata, the architecture's own with their
    prefix. ``expanded``: the spec that it stands for, without sharing. ``tensors``: those that
    follow from the spec alone."""

    name: str
    architecture: Architecture
    keys: dict[str, Any]
    expanded: ModelSpec
    tensors: dict[str, array[float]]


def target(spec: ModelSpec, family: str = "") -> Target | list[str]:
    """The architecture for ``spec``, its sharing expanded; ``family``'s own where it is one of
    several. A list of what keeps it from the nearest one where there is none."""
    never = list(_in_none(spec))
    if never:
        return never
    expanded = expand(spec)
    tried = {name: list(a.refusals(expanded)) for name, a in ARCHITECTURES.items()}
    fitting = [name for name, reasons in tried.items() if not reasons]
    if not fitting:
        return min(tried.values(), key=len)
    name = family if family in fitting else fitting[0]
    architecture = ARCHITECTURES[name]
    if architecture.folds:
        # Such an architecture has a head of its own, always.
        folded = expanded.values() | {"scale": {}, "tie_embeddings": False}
        expanded = ModelSpec.parse(folded)
    keys = {"general.architecture": name}
    keys |= {f"{name}.{key}": value for key, value in architecture.keys(expanded).items()}
    return Target(name, architecture, keys, expanded, _rope_tensors(name, expanded))


def row_order(spec: ModelSpec, architecture: Architecture, part: str) -> tuple[int, ...] | None:
    """Row r of a GGUF tensor of queries or keys is row ``order[r]`` of ours; None: the same.

    ``part``: the GGUF tensor's name.
    """
    stem = part.rpartition(".")[0]
    if not architecture.pairs or spec.position.layout == "interleaved":
        return None
    if stem.endswith(".attn_q"):
        heads = spec.attention.heads
    elif stem.endswith(".attn_k"):
        heads = spec.kv_heads
    else:
        return None
    return _neighbours(heads, spec.head_dim, spec.rotary_dim // 2)


@lru_cache(maxsize=8)  # a model's queries and its keys
def _neighbours(heads: int, dim: int, half: int) -> tuple[int, ...]:
    """The rows of ``heads`` heads, numbers that lie ``half`` apart beside each other."""
    head = [at for pair in zip(range(half), range(half, 2 * half), strict=True) for at in pair]
    head += range(2 * half, dim)
    return tuple(dim * number + at for number in range(heads) for at in head)


# -- what keeps a spec from an architecture


def _in_none(spec: ModelSpec) -> Iterator[str]:
    yield from ours_alone(spec)
    if spec.branches != "sequential":
        yield f"branches = '{spec.branches}'"
    if spec.logit_bias:
        yield "logit_bias"
    if spec.attention.window is not None:
        yield "attention.window"
    if spec.position.kind == "none":
        yield "position.kind = 'none'"
    if isinstance(spec.position.scaling, DynamicScaling):
        yield "position.scaling.kind = 'dynamic'"


def _of_llamas_kind(spec: ModelSpec, name: str) -> Iterator[str]:
    if spec.norm.kind != "rms":
        yield f"norm.kind = '{spec.norm.kind}' in {name}"
    if spec.position.kind != "rope":
        yield f"position.kind = '{spec.position.kind}' in {name}"
    if spec.feedforward.kind != "swiglu":
        yield f"feedforward.kind = '{spec.feedforward.kind}' in {name}"
    if spec.attention.scale != "1/sqrt(d)":
        yield f"attention.scale = '{spec.attention.scale}' in {name}"


def _biases(spec: ModelSpec) -> tuple[bool, bool, bool]:
    """(queries, keys and values; attention's output; feed-forward)."""
    bias, output = spec.attention.bias, spec.attention.output_bias
    return bias, bias if output is None else output, spec.feedforward.bias


def _common(
    spec: ModelSpec,
    name: str,
    biases: tuple[bool, bool, bool] | None = (False, False, False),
    scale: bool = False,
    qk_norm: bool = False,
) -> Iterator[str]:
    yield from _of_llamas_kind(spec, name)
    if biases is not None and _biases(spec) != biases:
        yield f"biases other than {name}'s"
    if not scale and spec.scale != Scale():
        yield f"scale in {name}"
    if (spec.attention.qk_norm, spec.attention.qk_gain) != (qk_norm, qk_norm):
        yield f"attention.qk_norm in {name}" if not qk_norm else "queries without norms and gains"


def _plainly_turned(spec: ModelSpec, name: str, layout: str | None = "half") -> Iterator[str]:
    """All dimensions turn, at most with interpolated positions."""
    position = spec.position
    if position.fraction != 1.0:
        yield f"position.fraction = {position.fraction} in {name}"
    if layout is not None and position.layout != layout:
        yield f"position.layout = '{position.layout}' in {name}"
    if position.scaling is not None and not isinstance(position.scaling, LinearScaling):
        yield f"position.scaling.kind = '{position.scaling.kind}' in {name}"


def _not_llama(spec: ModelSpec) -> Iterator[str]:
    yield from _common(spec, "llama", biases=None)
    scaling = spec.position.scaling
    if isinstance(scaling, LongRope):
        if scaling.short != scaling.long or spec.rope_gain != 1.0:
            yield "position.scaling.kind = 'longrope' in llama"


def _not_minicpm(spec: ModelSpec) -> Iterator[str]:
    yield from _common(spec, "minicpm", scale=True)
    yield from _plainly_turned(spec, "minicpm", layout=None)


def _not_qwen2(spec: ModelSpec) -> Iterator[str]:
    yield from _common(spec, "qwen2", biases=(True, False, False))
    yield from _plainly_turned(spec, "qwen2")


def _not_qwen3(spec: ModelSpec) -> Iterator[str]:
    yield from _common(spec, "qwen3", qk_norm=True)
    yield from _plainly_turned(spec, "qwen3")


def _not_phi3(spec: ModelSpec) -> Iterator[str]:
    yield from _common(spec, "phi3")
    if spec.head_dim * spec.attention.heads != spec.width:
        yield "attention.head_dim in phi3"
    if spec.position.layout != "half":
        yield f"position.layout = '{spec.position.layout}' in phi3"
    scaling = spec.position.scaling
    if scaling is not None and not isinstance(scaling, LongRope):
        yield f"position.scaling.kind = '{scaling.kind}' in phi3"


def _with_layer_norms(spec: ModelSpec, name: str) -> Iterator[str]:
    if spec.norm.kind != "layer" or not spec.norm.bias:
        yield f"norms other than layer norms with biases in {name}"
    if _biases(spec) != (True, True, True):
        yield f"parts without biases in {name}"
    if spec.attention.qk_norm:
        yield f"attention.qk_norm in {name}"
    if spec.head_dim * spec.attention.heads != spec.width:
        yield f"attention.head_dim in {name}"


def _not_gpt2(spec: ModelSpec) -> Iterator[str]:
    yield from _with_layer_norms(spec, "gpt2")
    if spec.position.kind != "learned":
        yield f"position.kind = '{spec.position.kind}' in gpt2"
    if spec.feedforward.kind != "gelu":
        yield f"feedforward.kind = '{spec.feedforward.kind}' in gpt2"
    if spec.attention.scale != "1/sqrt(d)":
        yield f"attention.scale = '{spec.attention.scale}' in gpt2"
    if spec.scale != Scale():
        yield "scale in gpt2"


def _not_jais(spec: ModelSpec) -> Iterator[str]:
    yield from _with_layer_norms(spec, "jais")
    if spec.position.kind != "alibi":
        yield f"position.kind = '{spec.position.kind}' in jais"
    if spec.position.scaling is not None:
        yield "position.scaling of ALiBi in jais"
    if spec.feedforward.kind != "swiglu":
        yield f"feedforward.kind = '{spec.feedforward.kind}' in jais"
    if spec.attention.scale != "1/d":
        yield f"attention.scale = '{spec.attention.scale}' in jais"
    if spec.scale.residual != 1.0:
        yield "scale.residual in jais"


# -- what its file says


def _sizes(spec: ModelSpec) -> dict[str, Any]:
    return {
        "vocab_size": spec.vocab_size,
        "context_length": spec.context,
        "embedding_length": spec.width,
        "block_count": spec.depth,
        "feed_forward_length": spec.feedforward.hidden,
        "attention.head_count": spec.attention.heads,
        "attention.head_count_kv": spec.kv_heads,
    }


def _llama_keys(spec: ModelSpec) -> dict[str, Any]:
    keys = _sizes(spec) | {
        "attention.layer_norm_rms_epsilon": spec.norm.eps,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "rope.dimension_count": spec.head_dim,
        "rope.freq_base": spec.position.theta,
    }
    if _interpolated(spec):
        assert isinstance(spec.position.scaling, LinearScaling)
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": spec.position.scaling.factor}
    return keys


def _minicpm_keys(spec: ModelSpec) -> dict[str, Any]:
    return _llama_keys(spec) | {
        "embedding_scale": spec.scale.embedding,
        "residual_scale": spec.scale.residual,
        # llama.cpp divides by it.
        "logit_scale": 1.0 / spec.scale.logits,
    }


def _phi3_keys(spec: ModelSpec) -> dict[str, Any]:
    keys = _llama_keys(spec) | {"rope.dimension_count": spec.rotary_dim}
    if isinstance(spec.position.scaling, LongRope):
        keys |= {
            "rope.scaling.original_context_length": spec.position.scaling.original,
            "rope.scaling.attn_factor": spec.rope_gain,
        }
    return keys


def _gpt2_keys(spec: ModelSpec) -> dict[str, Any]:
    return _sizes(spec) | {"attention.layer_norm_epsilon": spec.norm.eps}


def _jais_keys(spec: ModelSpec) -> dict[str, Any]:
    # Slopes begin at 2^(-8 / heads).
    return _gpt2_keys(spec) | {"attention.max_alibi_bias": 8.0}


def _interpolated(spec: ModelSpec) -> bool:
    """Whether positions are interpolated and that alone: a key says so."""
    return isinstance(spec.position.scaling, LinearScaling) and spec.position.fraction == 1.0


def _rope_tensors(name: str, spec: ModelSpec) -> dict[str, array[float]]:
    scaling = spec.position.scaling
    if scaling is None and spec.rotary_dim == spec.head_dim:
        return {}
    if name == "phi3" and isinstance(scaling, LongRope):
        ones = (1.0,) * (spec.rotary_dim // 2)
        return {
            "rope_factors_long.weight": array("f", scaling.long or ones),
            "rope_factors_short.weight": array("f", scaling.short or ones),
        }
    if name == "llama":
        divisors = _divisors(spec)
        if not _interpolated(spec) and any(divisor != 1 for divisor in divisors):
            return {"rope_freqs.weight": divisors}
    return {}


def _divisors(spec: ModelSpec) -> array[float]:
    """What llama's angles are divided by to become the spec's: theta^(-2i/d) for a head's d
    dimensions over the frequency that turns pair i. Pairs that do not turn get STILL."""
    plain = Position(theta=spec.position.theta)
    theirs = exact_frequencies(plain, spec.head_dim)
    ours = exact_frequencies(spec.position, spec.rotary_dim)
    turning = [their / our for their, our in zip(theirs, ours, strict=False)]
    return array("f", turning + [STILL] * (len(theirs) - len(ours)))


# The first that fits is taken.
ARCHITECTURES = {
    "qwen2": Architecture(_not_qwen2, _llama_keys, "gguf"),
    "llama": Architecture(_not_llama, _llama_keys, "gguf", pairs=True),
    "minicpm": Architecture(_not_minicpm, _minicpm_keys, "gguf", pairs=True),
    "qwen3": Architecture(_not_qwen3, _llama_keys, "gguf"),
    "phi3": Architecture(_not_phi3, _phi3_keys, "gguf-phi3"),
    "gpt2": Architecture(_not_gpt2, _gpt2_keys, "gguf-fused"),
    "jais": Architecture(_not_jais, _jais_keys, "gguf-fused", folds=True),
}
