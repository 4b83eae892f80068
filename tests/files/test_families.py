"""Checkpoints in the published names and layouts that transformers has no class for, written by
hand here from a model of ours, come back as that model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from flyweight.files.model_folder import write_model_folder  # noqa: E402
from flyweight.files.tensors import write_tensors  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.spec import toml  # noqa: E402
from flyweight.text.bytes import ByteTokenizer  # noqa: E402

from .families import (  # noqa: E402
    DEPTH,
    HEAD,
    HEADS,
    HIDDEN,
    LLAMA_CONFIG,
    TOKENS,
    VOCAB,
    WIDTH,
    decoder,
    is_the_model,
    llama_names,
)


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
