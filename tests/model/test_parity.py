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
    """The same logits; as many from a cache, and for each row of a batch of unequal lengths."""
    tokens = torch.tensor([list(source[:CONTEXT]), list(source[500 : 500 + CONTEXT])])
    expected = other(input_ids=tokens).logits
    found = mine(tokens)
    assert expected.std() > 0.5
    near = 1e-4 * expected.abs().max()
    assert (found - expected).abs().max() < near
    cache = mine.new_cache()
    parts = [mine(part, cache=cache) for part in tokens[:1].split([20, 1, 1, 30, 1, 11], dim=1)]
    assert (torch.cat(parts, dim=1) - expected[:1]).abs().max() < near
    short = other(input_ids=tokens[1:, :40]).logits
    tokens[1, 40:] = 0
    assert (mine(tokens)[1, :40] - short).abs().max() < near


def layers(state: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Callable[[str], Tensor]]]:
    for i in range(DEPTH):
        yield f"blocks.{i}.", lambda name, i=i: state[f"{prefix}{i}.{name}"]


# Our tensor, and the parts that it is put together from: Llama's names, and Phi-3's fused ones.
LLAMA = {
    "attention.qkv": (["q_proj", "k_proj", "v_proj"], "self_attn."),
    "attention.output": (["o_proj"], "self_attn."),
    "attention.query_norm": (["q_norm"], "self_attn."),
    "attention.key_norm": (["k_norm"], "self_attn."),
    "feedforward.gate_up": (["gate_proj", "up_proj"], "mlp."),
    "feedforward.down": (["down_proj"], "mlp."),
    "attention_norm": (["input_layernorm"], ""),
    "feedforward_norm": (["post_attention_layernorm"], ""),
}
FUSED = {"attention.qkv": "qkv_proj", "feedforward.gate_up": "gate_up_proj"}


def from_llama(other: nn.Module) -> dict[str, Tensor]:
    """Our tensors from a model with Llama's names; every one of its own is used."""
    state = other.state_dict()
    tensors = {
        "embedding.weight": state.pop("model.embed_tokens.weight"),
        "norm.weight": state.pop("model.norm.weight"),
    }
    head = state.pop("lm_head.weight")
    if not other.config.tie_word_embeddings:
        tensors["head.weight"] = head
    for i in range(DEPTH):
        for name, (parts, under) in LLAMA.items():
            for leaf in ("weight", "bias"):
                names = [f"model.layers.{i}.{under}{part}.{leaf}" for part in parts]
                if names[0] not in state and name in FUSED:
                    names = [f"model.layers.{i}.{under}{FUSED[name]}.{leaf}"]
                if names[0] in state:
                    tensors[f"blocks.{i}.{name}.{leaf}"] = torch.cat([state.pop(n) for n in names])
    assert not state, sorted(state)
    return tensors


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
    tensors = from_llama(other)
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
    attention = {"heads": 6, "kv_heads": 2, "head_dim": 10, "window": 9}
    assert_same(ours(from_llama(other), attention=attention), other, source)


@pytest.mark.parametrize(
    ("activation", "kind"), [("gelu_new", "gelu"), ("gelu", "gelu-exact")], ids=["gpt2", "cerebras"]
)
def test_gpt2(source: bytes, activation: str, kind: str) -> None:
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_inner=HIDDEN,
        n_layer=DEPTH,
        n_head=6,
        n_positions=CONTEXT,
        activation_function=activation,
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
        feedforward={"kind": kind, "hidden": HIDDEN, "bias": True},
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
    mine = ours(
        from_llama(other),
        attention={"heads": 6, "kv_heads": 3},
        position={"kind": "rope", "fraction": 0.75},
    )
    assert_same(mine, other, source)


def test_qwen2_has_biases_but_on_the_output(source: bytes) -> None:
    config = transformers.Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )
    other = theirs(transformers.Qwen2ForCausalLM(config))
    mine = ours(
        from_llama(other),
        attention={"heads": 6, "kv_heads": 2, "bias": True, "output_bias": False},
        norm={"kind": "rms", "eps": 1e-6},
        position={"kind": "rope", "theta": 1e6},
        tie_embeddings=True,
    )
    assert_same(mine, other, source)


def test_qwen3_normalises_queries_and_keys_with_gains(source: bytes) -> None:
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )
    other = theirs(transformers.Qwen3ForCausalLM(config))
    mine = ours(
        from_llama(other),
        attention={"heads": 6, "kv_heads": 2, "head_dim": 16, "qk_norm": True, "qk_gain": True},
        norm={"kind": "rms", "eps": 1e-6},
        position={"kind": "rope", "theta": 1e6},
        tie_embeddings=True,
    )
    assert_same(mine, other, source)


def test_glm_rotates_half_of_each_head_in_neighbouring_pairs(source: bytes) -> None:
    """The layout of ChatGLM, and so of GEB."""
    config = transformers.GlmConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        attention_bias=True,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
        },
        pad_token_id=0,
    )
    other = theirs(transformers.GlmForCausalLM(config))
    mine = ours(
        from_llama(other),
        attention={"heads": 6, "kv_heads": 2, "bias": True, "output_bias": False},
        position={"kind": "rope", "fraction": 0.5, "layout": "interleaved"},
    )
    assert_same(mine, other, source)


@pytest.mark.parametrize("family", ["gptj", "codegen"])
def test_gptj_and_codegen_add_both_branches_of_one_norm(source: bytes, family: str) -> None:
    kind = {"gptj": "GPTJ", "codegen": "CodeGen"}[family]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_inner=HIDDEN,
        n_layer=DEPTH,
        n_head=4,
        n_positions=CONTEXT,
        rotary_dim=6,
        tie_word_embeddings=False,
    )
    other = theirs(getattr(transformers, f"{kind}ForCausalLM")(config))
    state = other.state_dict()
    tensors = {"embedding.weight": state["transformer.wte.weight"]}
    for leaf in ("weight", "bias"):
        tensors[f"norm.{leaf}"] = state[f"transformer.ln_f.{leaf}"]
        tensors[f"head.{leaf}"] = state[f"lm_head.{leaf}"]
    names = {
        "attention_norm": "ln_1",
        "feedforward.up": "mlp.fc_in",
        "feedforward.down": "mlp.fc_out",
    }
    for ours_at, get in layers(state, "transformer.h."):
        for name, theirs_name in names.items():
            for leaf in ("weight", "bias"):
                tensors[f"{ours_at}{name}.{leaf}"] = get(f"{theirs_name}.{leaf}")
        if family == "gptj":
            qkv = [get(f"attn.{n}_proj.weight") for n in "qkv"]
        else:
            # Four groups of heads, each with its queries, its values and its keys, in this order.
            groups = get("attn.qkv_proj.weight").view(4, 3, WIDTH // 4, WIDTH)
            qkv = [groups[:, i].reshape(WIDTH, WIDTH) for i in (0, 2, 1)]
        tensors[f"{ours_at}attention.qkv.weight"] = torch.cat(qkv)
        tensors[f"{ours_at}attention.output.weight"] = get("attn.out_proj.weight")
    mine = ours(
        tensors,
        attention={"heads": 4},
        feedforward={"kind": "gelu", "hidden": HIDDEN, "bias": True},
        norm={"kind": "layer", "bias": True},
        position={"kind": "rope", "fraction": 0.5, "layout": "interleaved"},
        branches="parallel",
        logit_bias=True,
    )
    assert_same(mine, other, source)
