"""Positions beyond the first training: LongRoPE, Llama 3, interpolation and NTK, cached too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import Tensor, nn  # noqa: E402

from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.positions import alibi_slopes, rope_frequencies  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.spec.position import Position  # noqa: E402

Make = Callable[..., Decoder]
HEAD_DIM, ORIGINAL, CONTEXT = 16, 24, 96
SHORT = [1.0, 1.1, 1.3, 1.2, 1.5, 1.7]
LONG = [1.0, 2.5, 4.0, 8.0, 16.0, 30.0]
LONGROPE = {"kind": "longrope", "original": ORIGINAL, "short": SHORT, "long": LONG}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def theirs(kind: str, rope: dict[str, Any], **changes: Any) -> nn.Module:
    """A transformers model of two layers whose weights are far from nothing."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=300,
        hidden_size=4 * HEAD_DIM,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        pad_token_id=0,
        **changes,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            wide = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.add_(torch.randn(parameter.shape, generator=generator) * wide)
    return model.eval()


def ours(other: nn.Module, position: dict[str, Any]) -> Decoder:
    state = other.state_dict()
    tensors = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "head.weight": state["lm_head.weight"],
    }
    for i in range(2):
        at, to = f"model.layers.{i}.", f"blocks.{i}."
        if f"{at}self_attn.qkv_proj.weight" in state:
            tensors[f"{to}attention.qkv.weight"] = state[f"{at}self_attn.qkv_proj.weight"]
            tensors[f"{to}feedforward.gate_up.weight"] = state[f"{at}mlp.gate_up_proj.weight"]
        else:
            qkv = [state[f"{at}self_attn.{n}_proj.weight"] for n in "qkv"]
            tensors[f"{to}attention.qkv.weight"] = torch.cat(qkv)
            gate_up = [state[f"{at}mlp.{n}_proj.weight"] for n in ("gate", "up")]
            tensors[f"{to}feedforward.gate_up.weight"] = torch.cat(gate_up)
        tensors[f"{to}attention.output.weight"] = state[f"{at}self_attn.o_proj.weight"]
        tensors[f"{to}feedforward.down.weight"] = state[f"{at}mlp.down_proj.weight"]
        tensors[f"{to}attention_norm.weight"] = state[f"{at}input_layernorm.weight"]
        tensors[f"{to}feedforward_norm.weight"] = state[f"{at}post_attention_layernorm.weight"]
    spec = {
        "vocab_size": 300,
        "width": 4 * HEAD_DIM,
        "depth": 2,
        "context": CONTEXT,
        "attention": {"heads": 4, "kv_heads": 2},
        "feedforward": {"hidden": 80},
        "position": position,
    }
    model = Decoder(ModelSpec.parse(spec))
    model.load_state_dict(tensors, strict=True)
    return model.eval()


@torch.no_grad()
def assert_same(mine: Decoder, other: nn.Module, source: bytes, length: int) -> None:
    tokens = torch.tensor([list(source[at : at + length]) for at in (0, 700)])
    expected = other(input_ids=tokens).logits
    assert expected.std() > 0.5
    assert (mine(tokens) - expected).abs().max() < 1e-4 * expected.abs().max()


def phi() -> tuple[nn.Module, Decoder]:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": SHORT,
        "long_factor": LONG,
    }
    other = theirs("Phi3", rope, original_max_position_embeddings=ORIGINAL)
    return other, ours(other, {"kind": "rope", "fraction": 0.75, "scaling": LONGROPE})


@pytest.mark.parametrize("length", [1, 7, ORIGINAL, ORIGINAL + 1, CONTEXT])
def test_longrope_is_phis_with_the_short_and_the_long_factors(source: bytes, length: int) -> None:
    other, mine = phi()
    assert_same(mine, other, source, length)


def test_longropes_attention_factor_is_the_papers() -> None:
    """sqrt(1 + ln(s) / ln(L0)), 1.1902 for Phi-4-mini; a checkpoint may say another."""
    spec = {
        "vocab_size": 300,
        "width": 128,
        "depth": 1,
        "context": 131072,
        "attention": {"heads": 1},
        "feedforward": {"hidden": 8},
        "position": {"fraction": 0.75, "scaling": {"kind": "longrope", "original": 4096}},
    }
    assert ModelSpec.parse(spec).rope_gain == pytest.approx(1.190238, abs=1e-6)
    assert ModelSpec.parse({**spec, "context": 4096}).rope_gain == 1.0
    scaling = {"kind": "longrope", "original": 4096, "attention": 1.5}
    position = {"fraction": 0.75, "scaling": scaling}
    assert ModelSpec.parse({**spec, "position": position}).rope_gain == 1.5


def test_without_a_checkpoint_the_factors_are_ones() -> None:
    plain = rope_frequencies(Position(), 12)
    position = Position.parse({"scaling": {"kind": "longrope", "original": ORIGINAL}})
    for length in (1, CONTEXT):
        assert torch.equal(rope_frequencies(position, 12, length), plain)


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 10, ORIGINAL - 1, ORIGINAL])
def test_a_cache_changes_over_when_the_sequence_outgrows_the_original(
    source: bytes, first: int
) -> None:
    """Every token decoded is as in a full forward pass of the sequence so far."""
    other, mine = phi()
    row = torch.tensor([list(source[: ORIGINAL + 6])])
    cache = mine.new_cache()
    mine(row[:, :first], cache=cache)
    for at in range(first, row.shape[1]):
        found = mine(row[:, at : at + 1], cache=cache)
        assert found.shape[1] == 1
        torch.testing.assert_close(found, mine(row[:, : at + 1])[:, -1:], **CLOSE)
        expected = other(input_ids=row[:, : at + 1]).logits[:, -1:]
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert [slot.length for slot in cache.slots] == [ORIGINAL + 6] * 2
    assert cache.tokens == row[0].tolist()


@torch.no_grad()
def test_a_part_that_crosses_the_original_changes_over_as_a_whole(source: bytes) -> None:
    _, mine = phi()
    row = torch.tensor([list(source[:40])])
    cache = mine.new_cache()
    mine(row[:, :20], cache=cache)
    torch.testing.assert_close(mine(row[:, 20:], cache=cache), mine(row)[:, 20:], **CLOSE)


SCALINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, {"kind": "linear", "factor": 4.0}),
    "dynamic": (
        {"rope_type": "dynamic", "factor": 4.0},
        {"kind": "dynamic", "factor": 4.0, "original": CONTEXT // 2},
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        },
        {"kind": "llama3", "factor": 8.0, "low": 1.0, "high": 4.0, "original": ORIGINAL},
    ),
}


@pytest.mark.parametrize("length", [20, CONTEXT])
@pytest.mark.parametrize("kind", sorted(SCALINGS))
def test_scaled_rope_is_that_of_transformers(source: bytes, kind: str, length: int) -> None:
    rope, scaling = SCALINGS[kind]
    other = theirs("Llama", {**rope, "rope_theta": 500.0})
    if kind == "dynamic":
        # Its original length is max_position_embeddings, which is then outgrown.
        other.model.rotary_emb.config.max_position_embeddings = CONTEXT // 2
        other.model.rotary_emb.max_seq_len_cached = CONTEXT // 2
        other.model.rotary_emb.original_max_seq_len = CONTEXT // 2
    mine = ours(other, {"kind": "rope", "theta": 500.0, "scaling": scaling})
    assert_same(mine, other, source, length)
    plain = ours(other, {"kind": "rope", "theta": 500.0})
    tokens = torch.tensor([list(source[:length])])
    changed = (plain(tokens) - mine(tokens)).abs().max()
    assert (changed > 1e-2) == (kind != "dynamic" or length > CONTEXT // 2)


@torch.no_grad()
@pytest.mark.parametrize("length", [10, 24, 25, 60])
def test_alibi_is_interpolated_beyond_the_training_length(
    decoder: Make, source: bytes, length: int
) -> None:
    """Slopes times L / n for n > L positions, as a model whose slopes are written by hand."""
    scaling = {"kind": "linear", "original": 24}
    mine = decoder(position={"kind": "alibi", "scaling": scaling})
    plain = decoder(position={"kind": "alibi"})
    tokens = torch.tensor([list(source[:length])])
    plain.positions.slopes = alibi_slopes(4) * min(1.0, 24 / length)
    torch.testing.assert_close(mine(tokens), plain(tokens), **CLOSE)
    fixed = decoder(position={"kind": "alibi", "scaling": {"kind": "linear", "factor": 4.0}})
    plain.positions.slopes = alibi_slopes(4) / 4
    torch.testing.assert_close(fixed(tokens), plain(tokens), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize(
    "position",
    [
        {"kind": "alibi", "scaling": {"kind": "linear", "original": 24}},
        {"kind": "rope", "scaling": {"kind": "dynamic", "factor": 2.0, "original": 24}},
        {"kind": "rope", "scaling": {"kind": "longrope", "original": 24, "long": [1, 3, 5, 9]}},
    ],
    ids=lambda position: str(position["scaling"]["kind"]),
)
def test_a_cache_that_knows_its_reach_decodes_as_the_full_pass(
    decoder: Make, source: bytes, position: dict[str, Any]
) -> None:
    mine = decoder(position=position)
    row = torch.tensor([list(source[:60])])
    cache = mine.new_cache(reach=60)
    parts = [mine(part, cache=cache) for part in row.split([5, 30, 1, 1, 23], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), mine(row), **CLOSE)
    unaware = mine.new_cache()
    first = mine(row[:, :5], cache=unaware)
    assert (first - parts[0]).abs().max() > 1e-4, "the reach changes what is short, too"
    torch.testing.assert_close(first, mine(row[:, :5]), **CLOSE)


def test_llama3_keeps_fast_frequencies_and_divides_slow_ones() -> None:
    scaling = {"kind": "llama3", "factor": 32.0, "low": 1.0, "high": 4.0, "original": 8192}
    scaled = rope_frequencies(Position.parse({"theta": 500000.0, "scaling": scaling}), 64)
    plain = rope_frequencies(Position(theta=500000.0), 64)
    turns = 8192 * plain / (2 * math.pi)
    assert torch.equal(scaled[turns > 4], plain[turns > 4])
    torch.testing.assert_close(scaled[turns < 1], plain[turns < 1] / 32)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 32))[between].all()


def test_weights_alone_do_not_hold_positions() -> None:
    """Factors are the spec's: a state of tensors is the same with and without them."""
    _, mine = phi()
    names: set[str] = set(mine.state_dict())
    assert not any("frequencies" in name or "slopes" in name for name in names)
    assert isinstance(mine.positions.frequencies, Tensor)
