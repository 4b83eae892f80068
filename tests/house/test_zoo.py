"""The zoo's models weigh what their papers say, and exactly what the decoder allocates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.spec.errors import ConfigurationError
from flyweight.spec.model import ModelSpec
from flyweight.zoo import catalog, shapes

# Millions of parameters, and without embeddings and head: published, recomputed from the
# published configurations.
PUBLISHED = {
    "btlm-3b-8k": (2646, 2517),
    "geb-1.3b": (1348, 1082),
    "minicpm-1.2b": (1360, 1247),
    "mobilellm-125m": (124.6, 106.2),
    "mobilellm-ls-125m": (124.6, 106.2),
    "mobillama-0.5b": (535, 404),
    "stlm-50m": (47, 21.5),
}


def decoder_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    torch = pytest.importorskip("torch")
    from flyweight.model.decoder import Decoder

    with torch.device("meta"):
        decoder = Decoder(spec)
    return {name: tuple(value.shape) for name, value in decoder.named_parameters()}


def test_every_model_of_the_zoo_has_a_published_figure() -> None:
    entries = [catalog.get(name) for name in catalog.names()]
    assert {entry.name for entry in entries if entry.family != "flyweight"} == PUBLISHED.keys()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameters_are_those_published(name: str) -> None:
    counts = catalog.parameters(catalog.get(name).spec)
    total, without = PUBLISHED[name]
    # Published figures are rounded or cut to a million, or to a tenth of one.
    step = 0.1 if isinstance(total, float) else 1
    assert abs(counts.unique / 1e6 - total) < step
    step = 0.1 if isinstance(without, float) else 1
    assert abs(counts.without_embeddings / 1e6 - without) < step


@pytest.mark.parametrize("name", catalog.names())
def test_shapes_are_those_of_the_decoder(name: str) -> None:
    spec = catalog.get(name).spec
    listed = list(shapes.tensors(spec))
    assert {t.name: t.shape for t in listed} == decoder_shapes(spec)
    assert len({t.name for t in listed}) == len(listed)


def test_a_shared_body_counts_once_and_a_repeated_one_too() -> None:
    shared = catalog.parameters(catalog.get("mobillama-0.5b").spec)
    assert shared.total - shared.unique == 21 * 3 * 2048 * 5632
    once = catalog.parameters(catalog.get("mobilellm-125m").spec)
    twice = catalog.parameters(catalog.get("mobilellm-ls-125m").spec)
    assert twice.unique == once.unique == once.total
    assert twice.total - twice.unique == once.without_embeddings - 576


def test_bytes_follow_the_formats() -> None:
    spec = catalog.get("mobilellm-125m").spec
    vectors = sum(t.size for t in shapes.tensors(spec) if len(t.shape) == 1)
    matrices = catalog.parameters(spec).unique - vectors
    assert shapes.bytes_per_format(spec) == {
        "f32": 4 * (matrices + vectors),
        "bf16": 2 * matrices + 4 * vectors,
        "q8_0": matrices * 34 // 32 + 4 * vectors,
        "q4_0": matrices * 18 // 32 + 4 * vectors,
    }
    # BTLM's 6826 is no multiple of 32, so those matrices keep 16 bits.
    btlm = catalog.get("btlm-3b-8k").spec
    odd = 32 * 2560 * 6826
    assert shapes.bytes_per_format(btlm)["q4_0"] > 2 * odd + (2517e6 - odd) * 18 / 32


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    heads = draw(st.sampled_from([2, 4, 6]))
    depth = draw(st.integers(3, 5))
    kind = draw(st.sampled_from(["none", "all", "interior"]))
    share: dict[str, Any] = {"feedforward": kind}
    if kind == "interior":
        share["lora_rank"] = draw(st.sampled_from([0, 3]))
    if draw(st.booleans()):
        share |= {"block": "adjacent", "repeat": draw(st.integers(2, 3))}
    layer = draw(st.booleans())
    values: dict[str, Any] = {
        "vocab_size": draw(st.sampled_from([258, 300])),
        "width": heads * 8,
        "depth": depth,
        "context": 32,
        "norm": {
            "kind": "layer" if layer else "rms",
            "gain": True if layer else draw(st.booleans()),
            "bias": layer and draw(st.booleans()),
        },
        "position": {"kind": draw(st.sampled_from(["rope", "alibi", "learned", "none"]))},
        "attention": {
            "heads": heads,
            "kv_heads": draw(st.sampled_from([None, 1, 2, heads])),
            "head_dim": draw(st.sampled_from([None, 10])),
            "bias": draw(st.booleans()),
            "output_bias": draw(st.sampled_from([None, True, False])),
        },
        "feedforward": {
            "kind": draw(st.sampled_from(["swiglu", "gelu", "relu2"])),
            "hidden": draw(st.integers(1, 40)),
            "bias": draw(st.booleans()),
        },
        "share": share,
        "tie_embeddings": draw(st.booleans()),
    }
    if draw(st.booleans()):
        values["ngrams"] = {"orders": [2, 4], "rows": 16, "dim": 3}
    if draw(st.booleans()):
        values["matches"] = {"lengths": [3, 5, 7]}
    if draw(st.booleans()):
        parts = {"front_depth": draw(st.integers(0, 2)), "decoder_depth": draw(st.integers(0, 2))}
        values["input"] = {"kind": "patches", "width": 12, "hidden": 20, **parts}
        if values["position"]["kind"] == "learned":
            values["position"] = {"kind": "rope"}
    return ModelSpec.parse(values)


@settings(max_examples=60, deadline=None)
@given(specs())
def test_shapes_of_any_spec_are_those_of_the_decoder(spec: ModelSpec) -> None:
    assert {t.name: t.shape for t in shapes.tensors(spec)} == decoder_shapes(spec)
    counts = shapes.parameters(spec)
    assert 0 < counts.embeddings < counts.unique <= counts.total


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"`mobilama`.*did you mean `mobillama-0\.5b`"):
        catalog.get("mobilama")
