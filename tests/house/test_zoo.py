"""The zoo's models weigh what their papers say, and exactly what the decoder allocates."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.spec.errors import ConfigurationError
from flyweight.spec.model import ModelSpec
from flyweight.spec.toml import dumps
from flyweight.zoo import catalog, drawing, shapes

# Millions of parameters, and without embeddings and head: published where the papers and model
# cards say, else recomputed by hand from the published configurations.
PUBLISHED = {
    "btlm-3b-8k": (2646, 2517),
    "cerebras-gpt-1.3b": (1316, 1209),
    "cerebras-gpt-111m": (111, 70.9),
    "cerebras-gpt-2.7b": (2652, 2518),
    "cerebras-gpt-256m": (256, 199.1),
    "cerebras-gpt-590m": (590, 510),
    "codegen2-1b": (1015, 805),
    "flan-t5-base": (247.6, 198.2),
    "flan-t5-large": (783, 717),
    "flan-t5-small": (77.0, 44.1),
    "geb-1.3b": (1348, 1082),
    "gpt2": (124.4, 85.1),
    "jais-256m": (292, 199.6),
    "llama-3.2-1b": (1236, 973),
    "minicpm-0.17b": (276.2, 166.2),
    "minicpm-0.1b": (202.8, 108.5),
    "minicpm-0.2b": (366.9, 241.2),
    "minicpm-0.5b": (663.6, 498.6),
    "minicpm-1.2b": (1360, 1247),
    "minicpm-2.4b": (2725, 2442),
    "minicpm-30m": (99.0, 36.2),
    "minicpm-70m": (144.5, 66.0),
    "minicpm-9m": (48.7, 9.4),
    "mobilellm-1.5b": (1511, 1460),
    "mobilellm-125m": (124.6, 106.2),
    "mobilellm-1b": (1005, 964),
    "mobilellm-350m": (345, 314.6),
    "mobilellm-600m": (603, 566),
    "mobilellm-ls-125m": (124.6, 106.2),
    "mobilellm-ls-350m": (345, 314.6),
    "mobillama-0.5b": (535, 404),
    "mobillama-0.8b": (819, 655),
    "mobillama-1.2b": (1262, 1130),
    "phi-4-mini": (3836, 3221),
    "qwen2.5-0.5b": (494, 358),
    "qwen3-0.6b": (596, 440),
    "smollm2-1.7b": (1711, 1611),
    "smollm2-135m": (134.5, 106.2),
    "smollm2-360m": (362, 314.6),
    "stlm-50m": (47, 21.5),
    "stlm-bytes": (55.9, 55.9),
    "stlm-shared": (51.0, 23.7),
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


@pytest.mark.parametrize("name", catalog.names())
def test_a_spec_survives_as_toml(name: str) -> None:
    values = catalog.get(name).spec.values()
    assert ModelSpec.parse(tomllib.loads(dumps({"model": values}))["model"]) == ModelSpec.parse(
        values
    )


def test_factor_lists_survive_as_toml() -> None:
    values = catalog.get("phi-4-mini").spec.values()
    values["position"]["scaling"] |= {"short": [1.0] * 48, "long": [1.0 + i / 7 for i in range(48)]}
    spec = ModelSpec.parse(values)
    assert ModelSpec.parse(tomllib.loads(dumps({"model": spec.values()}))["model"]) == spec


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_flan_t5_weighs_what_transformers_allocates(size: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    spec = catalog.get(f"flan-t5-{size}").spec
    assert spec.encoder is not None
    config = transformers.T5Config(
        vocab_size=32128,
        d_model=spec.width,
        d_kv=64,
        d_ff=spec.feedforward.hidden,
        num_layers=spec.encoder.depth,
        num_decoder_layers=spec.depth,
        num_heads=spec.attention.heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(config)
        # As in FLAN's files; transformers 5 ties what it makes itself.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    published = {"small": 76_961_152, "base": 247_577_856, "large": 783_150_080}[size]
    assert sum(p.numel() for p in model.parameters()) == published
    counts = catalog.parameters(spec)
    assert counts.unique == counts.total == published
    # Keys and values of 8, 12 and 24 blocks, with 6, 12 and 16 heads of 64, in two bytes.
    blocks, heads = {"small": (8, 6), "base": (12, 12), "large": (24, 16)}[size]
    assert shapes.cache_bytes_per_token(spec) == blocks * 2 * heads * 64 * 2


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
        share |= {"lora_rank": draw(st.sampled_from([0, 3])), "ends": draw(st.integers(1, 2))}
        depth += 2 * (share["ends"] - 1)
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
        "position": {
            "kind": draw(st.sampled_from(["rope", "alibi", "learned", "relative", "none"]))
        },
        "attention": {
            "heads": heads,
            "kv_heads": draw(st.sampled_from([None, 1, 2, heads])),
            "head_dim": draw(st.sampled_from([None, 10])),
            "bias": draw(st.booleans()),
            "output_bias": draw(st.sampled_from([None, True, False])),
            **draw(st.sampled_from([{}, {"qk_norm": True}, {"qk_norm": True, "qk_gain": True}])),
        },
        "feedforward": {
            "kind": draw(
                st.sampled_from(["swiglu", "geglu", "gelu", "gelu-exact", "relu", "relu2"])
            ),
            "hidden": draw(st.integers(1, 40)),
            "bias": draw(st.booleans()),
        },
        "share": share,
        "branches": draw(st.sampled_from(["sequential", "parallel"])),
    }
    if draw(st.integers(0, 3)) == 0:
        values["input"] = {"kind": "slots", "slots": 3, "width": 12, "hidden": 20, "heads": 2}
        values["input"] |= {"front_depth": draw(st.integers(0, 2)), "decoder_depth": 1}
        if draw(st.booleans()):
            values["input"] |= {"front_widths": [16, heads * 8], "front_depth": 2}
        return ModelSpec.parse(values)
    values |= draw(st.sampled_from([{}, {"tie_embeddings": True}, {"logit_bias": True}]))
    if draw(st.integers(0, 3)) == 0:
        values |= {"encoder": {"depth": draw(st.integers(1, 3))}, "branches": "sequential"}
        values |= {"position": {"kind": "relative", "buckets": 6}, "share": {}}
        return ModelSpec.parse(values)
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


@settings(max_examples=60, deadline=None)
@given(specs())
def test_any_spec_can_be_drawn(spec: ModelSpec) -> None:
    """``draw`` itself refuses to leave a tensor out; here it meets every combination."""
    text = drawing.draw("a model", "a paper", spec)
    assert max(map(len, text.splitlines())) <= drawing.WIDTH
    assert f"{shapes.parameters(spec).unique:,}" in text


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"`mobilama`.*did you mean `mobillama-[\d.]+b`"):
        catalog.get("mobilama")
