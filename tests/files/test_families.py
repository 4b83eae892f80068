"""Checkpoints in the published names and layouts that transformers has no class for, written by
hand here from a model of ours, come back as that model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

import flyweight  # noqa: E402
from flyweight.files.model_folder import read_spec, write_model_folder  # noqa: E402
from flyweight.files.tensors import write_tensors  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.spec import toml  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.text.bytes import ByteTokenizer  # noqa: E402

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


@pytest.mark.parametrize("once", [False, True])
def test_mobillama(
    once: bool, folder: Callable[..., Path], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Its configuration's kv_heads are not what its code does; its feed-forwards are one."""
    model = decoder(share={"feedforward": "all"})
    tensors = llama_names(model)
    if once:
        # As safetensors saves one tensor under several names: under the first alone.
        tensors = {n: t for n, t in tensors.items() if ".mlp." not in n or ".layers.0." in n}
    theirs = folder(LLAMA_CONFIG | {"model_type": "mobillama", "num_key_value_heads": 2}, tensors)
    done = command("import", theirs, tmp_path / "ours").ok()
    assert once or f"tied shared_feedforward.down.weight: {DEPTH} equal copies" in done.err
    is_the_model(tmp_path / "ours", model)


def test_copies_that_differ_are_not_tied(
    folder: Callable[..., Path], command: Callable[..., Any], tmp_path: Path
) -> None:
    tensors = llama_names(decoder(share={"feedforward": "all"}))
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][3, 5] = -tensors[name][3, 5]
    theirs = folder(LLAMA_CONFIG | {"model_type": "mobillama"}, tensors)
    command("import", theirs, tmp_path / "ours").failed(name, "differ")
    del tensors[name]
    short = folder(LLAMA_CONFIG | {"model_type": "mobillama"}, tensors, "short")
    command("import", short, tmp_path / "ours").failed("missing (1)", name)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("repeat", [1, 2])
def test_mobilellm(
    repeat: int, folder: Callable[..., Path], command: Callable[..., Any], tmp_path: Path
) -> None:
    """No head in the file, whatever tie_word_embeddings says; a block that runs twice is there
    once."""
    once = decoder(tie_embeddings=True, attention={"heads": HEADS, "kv_heads": 2})
    model, config = once, {"layer_sharing": False}
    if repeat == 2:
        share = {"block": "adjacent", "repeat": 2}
        model = decoder(tie_embeddings=True, attention={"heads": HEADS, "kv_heads": 2}, share=share)
        config = {"layer_sharing": True}
    config |= {"model_type": "mobilellm", "share_embedding": True, "tie_word_embeddings": False}
    config |= {"num_key_value_heads": 2, "rope_scaling": None, "attention_bias": False}
    theirs = folder(LLAMA_CONFIG | config, llama_names(once))
    command("import", theirs, tmp_path / "ours").ok()
    is_the_model(tmp_path / "ours", model)


def test_minicpm(folder: Callable[..., Path], command: Callable[..., Any], tmp_path: Path) -> None:
    """Llama's names; the multipliers are the configuration's."""
    scale = {"embedding": 12.0, "residual": 1.4 / DEPTH**0.5, "logits": 16 / WIDTH}
    model = decoder(tie_embeddings=True, scale=scale)
    config = {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
    theirs = folder(LLAMA_CONFIG | config, llama_names(model))
    command("import", theirs, tmp_path / "ours").ok()
    is_the_model(tmp_path / "ours", model)


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


GEB_CHOICES = [
    ("by-head", "gate-first", "half-interleaved"),
    ("stacked", "up-first", "full-split"),
    ("by-head", "up-first", "half-split"),
    ("stacked", "gate-first", "full-interleaved"),
]


def geb(
    choice: tuple[str, str, str], sharp: bool = False
) -> tuple[Decoder, dict[str, Tensor], dict[str, Any]]:
    """A model, and its checkpoint laid out as ``choice`` says.

    ``sharp``: one that looks at few positions and is sure of what it says.
    """
    key_value, gate_up, rotation = choice
    share, layout = rotation.split("-")
    position = {
        "kind": "rope",
        "fraction": {"half": 0.5, "full": 1.0}[share],
        "layout": {"split": "half", "interleaved": "interleaved"}[layout],
    }
    model = decoder(attention={"heads": HEADS, "kv_heads": 2}, position=position, context=256)
    state = model.state_dict()
    if sharp:
        state["head.weight"].mul_(3)
        for i in range(DEPTH):
            state[f"blocks.{i}.attention.qkv.weight"][: (HEADS + 2) * HEAD].mul_(2)
    found = {
        "transformer.embedding.word_embeddings.weight": state["embedding.weight"],
        "transformer.encoder.final_layernorm.weight": state["norm.weight"],
        "transformer.output_layer.weight": state["head.weight"],
        "transformer.rotary_pos_emb.inv_freq": torch.ones(4),
    }
    for i in range(DEPTH):
        ours, theirs = f"blocks.{i}.", f"transformer.encoder.layers.{i}."
        q, k, v = state[f"{ours}attention.qkv.weight"].split([HEADS * HEAD, 2 * HEAD, 2 * HEAD])
        if key_value == "by-head":
            both = torch.cat([k[:HEAD], v[:HEAD], k[HEAD:], v[HEAD:]])
        else:
            both = torch.cat([k, v])
        gate, up = state[f"{ours}feedforward.gate_up.weight"].chunk(2)
        found |= {
            f"{theirs}input_layernorm.weight": state[f"{ours}attention_norm.weight"],
            f"{theirs}self_attention.query.weight": q,
            f"{theirs}self_attention.key_value.weight": both,
            f"{theirs}self_attention.dense.weight": state[f"{ours}attention.output.weight"],
            f"{theirs}post_attention_layernorm.weight": state[f"{ours}feedforward_norm.weight"],
            f"{theirs}mlp.dense_h_to_4h.weight": torch.cat(
                [gate, up] if gate_up == "gate-first" else [up, gate]
            ),
            f"{theirs}mlp.dense_4h_to_h.weight": state[f"{ours}feedforward.down.weight"],
        }
    options = {"key_value": key_value, "gate_up": gate_up, "rotation": rotation}
    return model, found, options


GEB_CONFIG = {
    "model_type": "geblm",
    "padded_vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_layers": DEPTH,
    "num_attention_heads": HEADS,
    "multi_query_group_num": 2,
    "kv_channels": HEAD,
    "ffn_hidden_size": HIDDEN,
    "seq_length": 256,
    "layernorm_epsilon": 1e-5,
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
}


@pytest.mark.parametrize("choice", GEB_CHOICES)
def test_geb_as_it_is_told(
    choice: tuple[str, str, str],
    folder: Callable[..., Path],
    command: Callable[..., Any],
    tmp_path: Path,
) -> None:
    model, tensors, options = geb(choice)
    theirs = folder(GEB_CONFIG, tensors)
    refused = command("import", theirs, tmp_path / "ours")
    refused.failed("key_value (by-head or stacked)", "--fit")
    flags = [flag for name, each in options.items() for flag in ("--option", f"{name}={each}")]
    command("import", theirs, tmp_path / "ours", *flags).ok()
    is_the_model(tmp_path / "ours", model)
    # transformers computes it, as a class that depends on the rotation.
    transformers = pytest.importorskip("transformers")
    done = command("export", tmp_path / "ours", tmp_path / "out").ok()
    name = {"full-split": "Llama", "half-split": "Phi3"}.get(choice[2], "Glm")
    assert done.out == f"{tmp_path / 'out'}: {name}ForCausalLM\n"
    out = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected, found = model(TOKENS), out(input_ids=TOKENS).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    command("import", tmp_path / "out", tmp_path / "back").ok()
    is_the_model(tmp_path / "back", model)


@pytest.mark.parametrize("choice", GEB_CHOICES[:2])
def test_geb_by_its_loss_on_a_text(
    choice: tuple[str, str, str],
    folder: Callable[..., Path],
    command: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """A text that the model itself wrote is likeliest under the layout that it has."""
    model, tensors, options = geb(choice, sharp=True)
    generator = torch.Generator().manual_seed(5)
    ids = [257]
    with torch.no_grad():
        while len(ids) < 250:
            likely = model(torch.tensor([ids]))[0, -1, :128].softmax(dim=-1)
            ids.append(int(torch.multinomial(likely, 1, generator=generator)))
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(ids[1:]))
    theirs = folder(GEB_CONFIG, tensors)
    done = command("import", theirs, tmp_path / "ours", "--fit", text, "--json").ok()
    result = json.loads(done.out)
    assert result["options"] == options and len(result["fit"]) == 16
    assert done.err.count("nats a token") == 16
    is_the_model(tmp_path / "ours", model)
    # What a text cannot tell apart is not guessed: here gate and up are one.
    for i in range(DEPTH):
        gate = tensors[f"transformer.encoder.layers.{i}.mlp.dense_h_to_4h.weight"][:HIDDEN]
        name = f"transformer.encoder.layers.{i}.mlp.dense_h_to_4h.weight"
        tensors[name] = torch.cat([gate, gate])
    same = folder(GEB_CONFIG, tensors, "same")
    command("import", same, tmp_path / "no", "--fit", text).failed("does not tell")


def test_like_a_model_of_the_zoo_or_a_file(
    folder: Callable[..., Path], command: Callable[..., Any], tmp_path: Path
) -> None:
    """A folder whose configuration says nothing of use, and one whose shapes are others."""
    model, tensors, options = geb(GEB_CHOICES[0])
    theirs = folder({"model_type": "surprise"}, tensors)
    command("import", theirs, tmp_path / "ours").failed("'surprise'", "--like")
    flags = [flag for name, each in options.items() for flag in ("--option", f"{name}={each}")]
    spec = tmp_path / "tiny.toml"
    spec.write_text(toml.dumps({"family": "geb", "model": model.spec.values()}))
    command("import", theirs, tmp_path / "ours", "--like", spec, *flags).ok()
    is_the_model(tmp_path / "ours", model)
    refused = command("import", theirs, tmp_path / "no", "--like", "geb-1.3b", *flags)
    refused.failed("missing", "misshapen", "word_embeddings.weight is [258, 48], not [64896, 2048]")
    command("import", theirs, tmp_path / "no", "--like", "stlm-10m").failed("stlm")
    command("import", theirs, tmp_path / "no", "--like", "geb").failed("geb-1.3b")
    assert not (tmp_path / "no").exists()


# -- out again, as what transformers knows


def model_folder(path: Path, model: Decoder) -> Path:
    write_tensors(path.with_suffix(".safetensors"), model.state_dict())
    weights = path.with_suffix(".safetensors")
    write_model_folder(path, path.name, model.spec, weights, ByteTokenizer().to_json())
    return path


SHARED: dict[str, dict[str, Any]] = {
    "mobillama": {"share": {"feedforward": "all"}},
    "mobilellm-ls": {"share": {"block": "adjacent", "repeat": 2}, "tie_embeddings": True},
    "interior": {"share": {"feedforward": "interior"}},
    "both": {"share": {"feedforward": "all", "block": "adjacent", "repeat": 3}},
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_bodies_go_out_repeated_and_come_back_shared(
    name: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    model = decoder(**SHARED[name])
    ours = model_folder(tmp_path / "ours", model)
    done = command("export", ours, tmp_path / "out", "--to", "hf", "--json").ok()
    assert json.loads(done.out)["architecture"] == "LlamaForCausalLM"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.config.num_hidden_layers == model.spec.uses
    wanted = llama_names(model) if name != "interior" else {}
    state = theirs.state_dict()
    assert all(torch.equal(state[n], t) for n, t in wanted.items())
    with torch.no_grad():
        expected, found = model(TOKENS), theirs(input_ids=TOKENS).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "parameters are unique" in card and "repeated here" in card
    command("import", tmp_path / "out", tmp_path / "back").ok()
    is_the_model(tmp_path / "back", model)


@pytest.mark.parametrize("tied", [True, False])
def test_minicpm_goes_out_folded_into_llama(
    tied: bool, command: Callable[..., Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    scale = {"embedding": 12.0, "residual": 1.4 / DEPTH**0.5, "logits": 16 / WIDTH}
    model = decoder(tie_embeddings=tied, scale=scale)
    ours = model_folder(tmp_path / "ours", model)
    command("export", ours, tmp_path / "out").ok()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected, found = model(TOKENS), theirs(input_ids=TOKENS).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "12.0" in card and ("matrix of its own" in card) == tied
    # Folded once, it is an ordinary Llama: from here on bit for bit.
    command("import", tmp_path / "out", tmp_path / "folded").ok()
    command("export", tmp_path / "folded", tmp_path / "again").ok()
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")
    )
    assert first == second


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "patches": ({"input": {"kind": "patches", "width": 16, "hidden": 16}}, "input.kind"),
    "n-grams": ({"ngrams": {"orders": [2], "rows": 16, "dim": 4}}, "ngrams"),
    "matches": ({"matches": {"lengths": [2]}}, "matches"),
    "no gains": ({"norm": {"kind": "rms", "gain": False}}, "norm.gain = false"),
    "low rank": ({"share": {"feedforward": "interior", "lora_rank": 2}}, "share.lora_rank"),
    "squared relu": ({"feedforward": {"kind": "relu2", "hidden": 24}}, "'relu2'"),
    "interleaved": (
        {
            "position": {"kind": "rope", "layout": "interleaved"},
            "attention": {"heads": 6, "window": 4},
        },
        "position.layout = 'interleaved'",
    ),
    "parallel": ({"branches": "parallel"}, "branches = 'parallel'"),
    "gainless q and k": ({"attention": {"heads": 6, "qk_norm": True}}, "attention.qk_norm"),
    "biased phi": (
        {"attention": {"heads": 6, "bias": True}, "position": {"kind": "rope", "fraction": 0.5}},
        "position.fraction = 0.5",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_class_computes_is_refused(
    name: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    changes, said = REFUSED[name]
    ours = model_folder(tmp_path / "ours", decoder(**changes))
    refused = command("export", ours, tmp_path / "out", "--to", "hf")
    refused.failed("no class of transformers computes this model", said)
    assert not (tmp_path / "out").exists()
