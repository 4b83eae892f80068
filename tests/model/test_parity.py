"""The same logits as `transformers` on the same random weights, family by family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import Tensor, nn  # noqa: E402

from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402

VOCAB, WIDTH, DEPTH, HIDDEN, CONTEXT = 300, 48, 3, 80, 64


def ours(tensors: dict[str, Tensor], **changes: Any) -> Decoder:
    """A decoder of the shapes above with exactly these tensors."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "width": WIDTH,
        "depth": DEPTH,
        "context": CONTEXT,
        "attention": {"heads": 6},
        "feedforward": {"hidden": HIDDEN},
        **changes,
    }
    model = Decoder(ModelSpec.parse(values))
    model.load_state_dict(tensors, strict=True)
    return model.eval()


@torch.no_grad()
def theirs(model: nn.Module) -> nn.Module:
    """Weights far from their starting values, so that nothing cancels and no bias is zero."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        wide = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.add_(torch.randn(parameter.shape, generator=generator) * wide)
    return model.eval()


@torch.no_grad()
def assert_same(mine: Decoder, other: nn.Module, source: bytes) -> None:
    tokens = torch.tensor([list(source[:CONTEXT]), list(source[500 : 500 + CONTEXT])])
    expected = other(input_ids=tokens).logits
    found = mine(tokens)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def layers(state: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Callable[[str], Tensor]]]:
    for i in range(DEPTH):
        yield f"blocks.{i}.", lambda name, i=i: state[f"{prefix}{i}.{name}"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_llama(source: bytes, tied: bool, kv_heads: int, bias: bool) -> None:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-4,
        rope_theta=500.0,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
    )
    other = theirs(transformers.LlamaForCausalLM(config))
    state = other.state_dict()
    tensors = {"embedding.weight": state["model.embed_tokens.weight"]}
    for ours_at, get in layers(state, "model.layers."):
        for leaf in ("weight", "bias") if bias else ("weight",):
            parts = [get(f"self_attn.{n}_proj.{leaf}") for n in "qkv"]
            tensors[f"{ours_at}attention.qkv.{leaf}"] = torch.cat(parts)
            tensors[f"{ours_at}attention.output.{leaf}"] = get(f"self_attn.o_proj.{leaf}")
            parts = [get(f"mlp.{n}_proj.{leaf}") for n in ("gate", "up")]
            tensors[f"{ours_at}feedforward.gate_up.{leaf}"] = torch.cat(parts)
            tensors[f"{ours_at}feedforward.down.{leaf}"] = get(f"mlp.down_proj.{leaf}")
        tensors[f"{ours_at}attention_norm.weight"] = get("input_layernorm.weight")
        tensors[f"{ours_at}feedforward_norm.weight"] = get("post_attention_layernorm.weight")
    tensors["norm.weight"] = state["model.norm.weight"]
    if not tied:
        tensors["head.weight"] = state["lm_head.weight"]
    mine = ours(
        tensors,
        attention={"heads": 6, "kv_heads": kv_heads, "bias": bias},
        feedforward={"kind": "swiglu", "hidden": HIDDEN, "bias": bias},
        norm={"kind": "rms", "eps": 1e-4},
        position={"kind": "rope", "theta": 500.0},
        tie_embeddings=tied,
    )
    assert_same(mine, other, source)


def test_mistral_with_a_sliding_window(source: bytes) -> None:
    config = transformers.MistralConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        sliding_window=9,
        attn_implementation="eager",
    )
    other = theirs(transformers.MistralForCausalLM(config))
    state = other.state_dict()
    tensors = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "head.weight": state["lm_head.weight"],
    }
    for ours_at, get in layers(state, "model.layers."):
        qkv = [get(f"self_attn.{n}_proj.weight") for n in "qkv"]
        tensors[f"{ours_at}attention.qkv.weight"] = torch.cat(qkv)
        tensors[f"{ours_at}attention.output.weight"] = get("self_attn.o_proj.weight")
        gate_up = [get(f"mlp.{n}_proj.weight") for n in ("gate", "up")]
        tensors[f"{ours_at}feedforward.gate_up.weight"] = torch.cat(gate_up)
        tensors[f"{ours_at}feedforward.down.weight"] = get("mlp.down_proj.weight")
        tensors[f"{ours_at}attention_norm.weight"] = get("input_layernorm.weight")
        tensors[f"{ours_at}feedforward_norm.weight"] = get("post_attention_layernorm.weight")
    attention = {"heads": 6, "kv_heads": 2, "head_dim": 10, "window": 9}
    assert_same(ours(tensors, attention=attention), other, source)


def test_gpt2(source: bytes) -> None:
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_inner=HIDDEN,
        n_layer=DEPTH,
        n_head=6,
        n_positions=CONTEXT,
    )
    other = theirs(transformers.GPT2LMHeadModel(config))
    state = other.state_dict()
    tensors = {
        "embedding.weight": state["transformer.wte.weight"],
        "embedding.positions": state["transformer.wpe.weight"],
    }
    names = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "feedforward_norm": "ln_2",
        "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj",
    }
    for ours_at, get in layers(state, "transformer.h."):
        for name, theirs_name in names.items():
            weight = get(f"{theirs_name}.weight")
            # GPT-2's Conv1D keeps its matrices as (inputs, outputs).
            tensors[f"{ours_at}{name}.weight"] = weight.t() if weight.ndim == 2 else weight
            tensors[f"{ours_at}{name}.bias"] = get(f"{theirs_name}.bias")
    for leaf in ("weight", "bias"):
        tensors[f"norm.{leaf}"] = state[f"transformer.ln_f.{leaf}"]
    mine = ours(
        tensors,
        attention={"heads": 6, "bias": True},
        feedforward={"kind": "gelu", "hidden": HIDDEN, "bias": True},
        norm={"kind": "layer", "bias": True},
        position={"kind": "learned"},
        tie_embeddings=True,
    )
    assert_same(mine, other, source)


@pytest.mark.parametrize("heads", [4, 6, 12])
def test_mpt_with_alibi(source: bytes, heads: int) -> None:
    config = transformers.MptConfig(
        vocab_size=VOCAB,
        d_model=WIDTH,
        n_layers=DEPTH,
        n_heads=heads,
        max_seq_len=CONTEXT,
    )
    other = transformers.MptForCausalLM(config)
    for block in other.transformer.blocks:
        block.ffn.act = nn.GELU("tanh")  # MPT's is exact; ours is GPT-2's
    state = theirs(other).state_dict()
    tensors = {
        "embedding.weight": state["transformer.wte.weight"],
        "norm.weight": state["transformer.norm_f.weight"],
    }
    names = {
        "attention_norm": "norm_1",
        "attention.qkv": "attn.Wqkv",
        "attention.output": "attn.out_proj",
        "feedforward_norm": "norm_2",
        "feedforward.up": "ffn.up_proj",
        "feedforward.down": "ffn.down_proj",
    }
    for ours_at, get in layers(state, "transformer.blocks."):
        for name, theirs_name in names.items():
            tensors[f"{ours_at}{name}.weight"] = get(f"{theirs_name}.weight")
    mine = ours(
        tensors,
        attention={"heads": heads},
        feedforward={"kind": "gelu", "hidden": 4 * WIDTH},
        norm={"kind": "layer"},
        position={"kind": "alibi"},
        tie_embeddings=True,
    )
    assert_same(mine, other, source)


def test_phi3_rotates_a_part_of_each_head(source: bytes) -> None:
    config = transformers.Phi3Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.75,
        },
        pad_token_id=0,
    )
    other = theirs(transformers.Phi3ForCausalLM(config))
    state = other.state_dict()
    tensors = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "head.weight": state["lm_head.weight"],
    }
    names = {
        "attention_norm": "input_layernorm",
        "attention.qkv": "self_attn.qkv_proj",
        "attention.output": "self_attn.o_proj",
        "feedforward_norm": "post_attention_layernorm",
        "feedforward.gate_up": "mlp.gate_up_proj",
        "feedforward.down": "mlp.down_proj",
    }
    for ours_at, get in layers(state, "model.layers."):
        for name, theirs_name in names.items():
            tensors[f"{ours_at}{name}.weight"] = get(f"{theirs_name}.weight")
    mine = ours(
        tensors,
        attention={"heads": 6, "kv_heads": 3},
        position={"kind": "rope", "fraction": 0.75},
    )
    assert_same(mine, other, source)
