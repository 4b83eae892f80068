"""A small model, its tensors under Llama's names, and whether what was imported is it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

import flyweight  # noqa: E402
from flyweight.files.model_folder import read_spec  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402

VOCAB, WIDTH, HIDDEN, DEPTH, HEADS, HEAD = 258, 48, 40, 4, 6, 8
TOKENS = torch.tensor([list(b"a stitch in time saves nine")])


def decoder(**changes: Any) -> Decoder:
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "width": WIDTH,
        "depth": DEPTH,
        "context": 64,
        "attention": {"heads": HEADS, "kv_heads": HEADS},
        "feedforward": {"hidden": HIDDEN},
        **changes,
    }
    model = Decoder(ModelSpec.parse(values)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            deviation = p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3
            p.copy_(torch.randn(p.shape, generator=generator) * deviation + (p.ndim == 1))
    return model


def llama_names(model: Decoder) -> dict[str, Tensor]:
    """Every use of every block under Llama's names."""
    spec, state = model.spec, model.state_dict()
    rows = [spec.attention.heads * spec.head_dim, *[spec.kv_heads * spec.head_dim] * 2]
    found = {
        "model.embed_tokens.weight": state["embedding.weight"],
        "model.norm.weight": state["norm.weight"],
    }
    if "head.weight" in state:
        found["lm_head.weight"] = state["head.weight"]
    for use in range(spec.uses):
        ours, theirs = f"blocks.{use // spec.share.repeat}.", f"model.layers.{use}."
        shared = "shared_feedforward." if spec.share.feedforward == "all" else f"{ours}feedforward."
        parts = state[f"{ours}attention.qkv.weight"].split(rows)
        for name, part in zip("qkv", parts, strict=True):
            found[f"{theirs}self_attn.{name}_proj.weight"] = part
        gate, up = state[f"{shared}gate_up.weight"].chunk(2)
        found |= {
            f"{theirs}self_attn.o_proj.weight": state[f"{ours}attention.output.weight"],
            f"{theirs}input_layernorm.weight": state[f"{ours}attention_norm.weight"],
            f"{theirs}post_attention_layernorm.weight": state[f"{ours}feedforward_norm.weight"],
            f"{theirs}mlp.gate_proj.weight": gate,
            f"{theirs}mlp.up_proj.weight": up,
            f"{theirs}mlp.down_proj.weight": state[f"{shared}down.weight"],
        }
    return found


LLAMA_CONFIG = {
    "hidden_act": "silu",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def is_the_model(imported: Path, model: Decoder) -> None:
    """The same spec (initialisation aside), the same bits, the same logits."""
    assert read_spec(imported) == model.spec
    stored, state = load_file(imported / "model.safetensors"), model.state_dict()
    assert stored.keys() == state.keys()
    for name in state:
        assert torch.equal(stored[name].view(torch.int32), state[name].view(torch.int32)), name
    with torch.no_grad():
        assert torch.equal(flyweight.load(imported, engine="torch").decoder(TOKENS), model(TOKENS))
