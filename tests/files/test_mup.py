"""BTLM, Jais and Cerebras-GPT with muP: one map of names, written by hand here from a model of
ours, comes back as that model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from flyweight.model.decoder import Decoder  # noqa: E402

from .families import DEPTH, HEAD, HEADS, HIDDEN, TOKENS, VOCAB, WIDTH, decoder, is_the_model  # noqa: E402


def btlm_names(model: Decoder) -> dict[str, Tensor]:
    """GPT-2's names and Conv1D; in SwiGLU c_fc2 is the gate."""
    state = model.state_dict()
    found = {
        "transformer.wte.weight": state["embedding.weight"],
        "lm_head.weight": state["embedding.weight"],
    }
    if model.spec.position.kind == "alibi":
        found["transformer.relative_pe.slopes"] = torch.ones(HEADS, 1, 1)
    else:
        found["transformer.wpe.weight"] = state["embedding.positions"]
    for leaf in ("weight", "bias"):
        found[f"transformer.ln_f.{leaf}"] = state[f"norm.{leaf}"]
        for i in range(DEPTH):
            ours, theirs = f"blocks.{i}.", f"transformer.h.{i}."
            found |= {
                f"{theirs}ln_1.{leaf}": state[f"{ours}attention_norm.{leaf}"],
                f"{theirs}ln_2.{leaf}": state[f"{ours}feedforward_norm.{leaf}"],
            }
            turned = {
                "attn.c_attn": state[f"{ours}attention.qkv.{leaf}"],
                "attn.c_proj": state[f"{ours}attention.output.{leaf}"],
                "mlp.c_proj": state[f"{ours}feedforward.down.{leaf}"],
            }
            if model.spec.feedforward.kind == "swiglu":
                gate, up = state[f"{ours}feedforward.gate_up.{leaf}"].chunk(2)
                turned |= {"mlp.c_fc": up, "mlp.c_fc2": gate}
            else:
                turned["mlp.c_fc"] = state[f"{ours}feedforward.up.{leaf}"]
            found |= {f"{theirs}{n}.{leaf}": t.t() if t.ndim == 2 else t for n, t in turned.items()}
    return found


BTLM: dict[str, Any] = {
    "activation_function": "swiglu",
    "position_embedding_type": "alibi",
    "vocab_size": VOCAB,
    "n_embd": WIDTH,
    "n_layer": DEPTH,
    "n_head": HEADS,
    "n_inner": HIDDEN,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}
MUP = {
    "mup_embeddings_scale": 14.6,
    "mup_output_alpha": 2.22,
    "mup_width_scale": 0.1,
    "mup_scale_qk_dot_by_d": True,
}
# Models of one map: what config.json says besides, and how the spec differs from BTLM's.
LEARNED = {"activation_function": "gelu", "position_embedding_type": "learned"}
CEREBRAS = {"position": {"kind": "learned"}, "feedforward": {"kind": "gelu-exact"}}
ONE_MAP: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "btlm": ({"model_type": "btlm", "alibi_scaling": None, **MUP}, {}),
    "btlm, early": (
        {
            **{"model_type": "btlm", "embeddings_scale": 14.6, "scale_qk_dot_by_d": True},
            **{"width_scale": 0.1, "output_logits_scale": 2.22 * 0.1},
        },
        {},
    ),
    "btlm, interpolated": (
        {
            **{"model_type": "btlm", **MUP},
            "alibi_scaling": {"type": "linear", "train_seq_len": 16},
        },
        {"position": {"scaling": {"kind": "linear", "original": 16}}},
    ),
    # Its family of 2024.
    "jais": (
        {"model_type": "jais", "alibi_scaling": None, **MUP},
        {},
    ),
    # Jais-13b and -30b have the product of the output's scales as width_scale.
    "jais, early": (
        {
            **{"model_type": "jais", "embeddings_scale": 14.6, "scale_qk_dot_by_d": True},
            "width_scale": 0.111,
        },
        {"scale": {"logits": 0.111}},
    ),
    "cerebras-gpt": (
        {"model_type": "gpt2", **LEARNED, "position_embedding_type": None},
        {**CEREBRAS, "scale": {"embedding": 1.0, "logits": 1.0}, "attention": {"scale": None}},
    ),
    "cerebras-gpt, muP": ({"model_type": "btlm", **LEARNED, **MUP}, CEREBRAS),
    "cerebras-gpt, muP, as gpt2": (
        {"model_type": "gpt2", **LEARNED, "position_embedding_type": None, **MUP},
        CEREBRAS,
    ),
}


def of_one_map(changes: dict[str, Any]) -> Decoder:
    spec: dict[str, Any] = {
        "norm": {"kind": "layer", "eps": 1e-5, "bias": True},
        "position": {"kind": "alibi"},
        "attention": {"heads": HEADS, "bias": True, "scale": "1/d"},
        "feedforward": {"hidden": HIDDEN, "bias": True},
        "scale": {"embedding": 14.6, "logits": 2.22 * 0.1},
        "tie_embeddings": True,
    }
    for table, values in changes.items():
        both = {**spec[table], **values}
        spec[table] = {key: value for key, value in both.items() if value is not None}
    return decoder(**spec)


@pytest.mark.parametrize("name", ONE_MAP)
def test_btlm_jais_and_cerebras_gpt(
    name: str, folder: Callable[..., Path], command: Callable[..., Any], tmp_path: Path
) -> None:
    config, changes = ONE_MAP[name]
    model = of_one_map(changes)
    theirs = folder(BTLM | config, btlm_names(model))
    done = command("import", theirs, tmp_path / "ours").ok()
    is_the_model(tmp_path / "ours", model)
    alibi = model.spec.position.kind == "alibi"
    assert ("left out (1): transformer.relative_pe.slopes" in done.err) == alibi
    assert "was not used" not in done.err
    if name == "cerebras-gpt":
        command("export", tmp_path / "ours", tmp_path / "back").ok()
        return
    refused = command("export", tmp_path / "ours", tmp_path / "back")
    refused.failed("attention.scale = '1/d'", *["position.kind = 'alibi'"] * alibi)


@pytest.mark.parametrize("name", ONE_MAP)
def test_scores_divided_by_the_layers_number_are_refused(
    name: str, folder: Callable[..., Path], command: Callable[..., Any], tmp_path: Path
) -> None:
    config, changes = ONE_MAP[name]
    config = BTLM | config | {"scale_attn_by_inverse_layer_idx": True}
    theirs = folder(config, btlm_names(of_one_map(changes)))
    refused = command("import", theirs, tmp_path / "ours")
    refused.failed("scale_attn_by_inverse_layer_idx = True is not supported")


def test_cerebras_gpt_with_mup_is_gpt2_with_other_weights() -> None:
    """transformers' GPT-2 computes it: the multipliers are part of its weights here.

    14.6 (E + P), queries over sqrt(d) once more, and a head of 2.22 * 0.1 E.
    """
    transformers = pytest.importorskip("transformers")
    model = of_one_map(CEREBRAS)
    state = btlm_names(model)
    for name in ("transformer.wte.weight", "transformer.wpe.weight"):
        state[name] = state[name] * 14.6
    state["lm_head.weight"] = state["lm_head.weight"] * (2.22 * 0.1)
    for i in range(DEPTH):
        for leaf in ("weight", "bias"):
            name = f"transformer.h.{i}.attn.c_attn.{leaf}"
            state[name] = state[name].clone()
            state[name][..., :WIDTH] *= HEAD**-0.5
    config = transformers.GPT2Config(
        **{k: v for k, v in BTLM.items() if k != "position_embedding_type"},
        **{"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False},
    )
    config.activation_function = "gelu"
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.load_state_dict(state)
    with torch.no_grad():
        expected, found = theirs(input_ids=TOKENS).logits, model(TOKENS)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
