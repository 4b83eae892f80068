"""Import and export beside transformers: its classes, its files, its logits, through the command
line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

import flyweight  # noqa: E402
from flyweight.files.model_folder import read_spec  # noqa: E402
from flyweight.spec import toml  # noqa: E402
from flyweight.text.subword import SubwordTokenizer  # noqa: E402

TEXT = b"It was a bright cold day in April, and the clocks were striking 13."
TOKENS = torch.tensor([list(TEXT[:64]), list(TEXT[-64:])])
SHORT = TOKENS[:, :20]


@torch.no_grad()
def same_logits(mine: Any, theirs: Any, tokens: Any = TOKENS) -> None:
    expected = theirs(input_ids=tokens).logits
    found = mine.decoder(tokens)
    assert expected.std() > 0.3
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def same_bits(one: Any, other: Any) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (t.contiguous().view(torch.uint8) for t in (one, other))
    return bool(torch.equal(first, second))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_there_and_back(
    kind: str, made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    """transformers -> Flyweight -> transformers: equal logits there, equal bits back."""
    theirs, model = made(kind)
    before = bytes_of(theirs)
    command("import", theirs, tmp_path / "ours").ok()
    assert bytes_of(theirs) == before
    mine = flyweight.load(tmp_path / "ours", engine="torch")
    same_logits(mine, model)
    same_logits(mine, model, SHORT)
    # Without importing first, the very same.
    direct = flyweight.load(theirs, engine="torch")
    with torch.no_grad():
        assert torch.equal(direct.decoder(TOKENS), mine.decoder(TOKENS))
    command("export", tmp_path / "ours", tmp_path / "back", "--to", "hf").ok()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert type(again) is type(model)
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(same_bits(tensor, state[name]) for name, tensor in again.state_dict().items())
    with torch.no_grad():
        again.config._attn_implementation = model.config._attn_implementation
        assert torch.equal(again(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)
    # And once more into ours: not a bit has changed.
    command("import", tmp_path / "back", tmp_path / "ours again").ok()
    assert read_spec(tmp_path / "ours again") == read_spec(tmp_path / "ours")
    for name in ("model.safetensors", "tokenizer.json"):
        first, second = ((tmp_path / at / name).read_bytes() for at in ("ours", "ours again"))
        assert first == second


@pytest.mark.parametrize("saving", [{"max_shard_size": "40KB"}, {"bin": True}, {"bin": 3}])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shards_pickles_and_half_precision_keep_every_bit(
    saving: dict[str, Any],
    dtype: str,
    made: Callable[..., Any],
    command: Callable[..., Any],
    tmp_path: Path,
) -> None:
    whole, _ = made("qwen2", getattr(torch, dtype))
    command("import", whole, tmp_path / "expected").ok()
    whole.rename(tmp_path / "whole")
    if "bin" in saving:
        theirs, model = made("qwen2", getattr(torch, dtype))
        (theirs / "model.safetensors").unlink()
        state = model.state_dict()
        if saving["bin"] is True:
            torch.save(state, theirs / "pytorch_model.bin")
        else:
            names = list(state)
            index = {}
            for part in range(saving["bin"]):
                file = f"pytorch_model-{part:05d}.bin"
                mine = names[part :: saving["bin"]]
                torch.save({name: state[name] for name in mine}, theirs / file)
                index |= dict.fromkeys(mine, file)
            text = json.dumps({"metadata": {}, "weight_map": index})
            (theirs / "pytorch_model.bin.index.json").write_text(text)
    else:
        theirs, model = made("qwen2", getattr(torch, dtype), **saving)
        assert len(list(theirs.glob("model-*.safetensors"))) > 2
    command("import", theirs, tmp_path / "ours").ok()
    assert (
        bytes_of(tmp_path / "ours")["model.safetensors"]
        == (bytes_of(tmp_path / "expected")["model.safetensors"])
    )
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{dtype}"}
    # Anew, as casting the model has rounded its rotary frequencies too.
    oracle = type(model)(model.config).eval()
    oracle.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    same_logits(flyweight.load(tmp_path / "ours", engine="torch"), oracle)


def test_half_precision_goes_back_to_the_bit(
    made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    theirs, model = made("phi3-longrope", torch.bfloat16)
    command("import", theirs, tmp_path / "ours").ok()
    command("export", tmp_path / "ours", tmp_path / "back").ok()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    assert again.dtype == torch.bfloat16
    state = model.state_dict()
    assert all(same_bits(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_a_window_in_some_layers_alone_is_refused(
    made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    theirs, _ = made("qwen2-window")
    config = json.loads((theirs / "config.json").read_text())
    config["layer_types"][0] = "full_attention"
    (theirs / "config.json").write_text(json.dumps(config))
    command("import", theirs, tmp_path / "ours").failed("layer_types", "all or none")
    del config["layer_types"]
    config["max_window_layers"] = 1
    (theirs / "config.json").write_text(json.dumps(config))
    command("import", theirs, tmp_path / "ours").failed("layer_types", "all or none")


def test_the_older_spelling_of_rope(
    made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    """rope_theta and rope_scaling, as folders of before transformers 5 have them."""
    for kind in ("llama3-rope", "phi3-longrope", "llama"):
        theirs, model = made(kind)
        config = json.loads((theirs / "config.json").read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        if kind == "phi3-longrope":
            rope.pop("original_max_position_embeddings", None)
            rope["type"] = rope.pop("rope_type")
        config["rope_scaling"] = None if kind == "llama" else rope
        (theirs / "config.json").write_text(json.dumps(config))
        mine = flyweight.load(theirs, engine="torch")
        same_logits(mine, model)
        same_logits(mine, model, SHORT)
        theirs.rename(tmp_path / kind)


def test_names_of_the_bare_decoder(made: Callable[..., Any]) -> None:
    """GPT-2's own checkpoint has no `transformer.` before its names, and masks among them."""
    from safetensors.torch import save_file

    theirs, model = made("gpt2")
    state = {n.removeprefix("transformer."): t for n, t in model.state_dict().items()}
    state.pop("lm_head.weight")
    state["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(state, theirs / "model.safetensors")
    same_logits(flyweight.load(theirs, engine="torch"), model)


def regrouped(qkv: Any, groups: int) -> Any:
    """CodeGen's matrix, its heads in four groups of queries, values and keys, in ``groups``."""
    rows, width = qkv.shape
    kinds = qkv.view(4, 3, rows // 12, width).transpose(0, 1).reshape(3, groups, -1, width)
    return kinds.transpose(0, 1).reshape(rows, width)


CODE = """
import pathlib

pathlib.Path("mark").touch()
        # TPU-v3
        mp_num = 8
        qkv_split = qkv.reshape(qkv.shape[:-1] + (mp_num, -1))
"""


def codegen2(theirs: Path, model: Any) -> None:
    """Make a folder of transformers' CodeGen one of CodeGen2: eight groups, code, and masks."""
    from safetensors.torch import save_file

    state = {n: regrouped(t, 8) if "qkv" in n else t for n, t in model.state_dict().items()}
    assert any(not torch.equal(state[n], t) for n, t in model.state_dict().items())
    for i in range(3):
        state[f"transformer.h.{i}.attn.causal_mask"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    save_file({n: t.contiguous() for n, t in state.items()}, theirs / "model.safetensors")
    config = json.loads((theirs / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "modeling_codegen.CodeGenModel"}, "head_dim": 6}
    config |= {"scale_attn_weights": True}
    (theirs / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("told", ["code", "option", "like"])
def test_codegen2_in_its_eight_groups(
    told: str, made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    """Eight groups in, the four that transformers computes out, whichever way they are told."""
    theirs, model = made("codegen")
    command("import", theirs, tmp_path / "four").ok()
    codegen2(theirs, model)
    flags: list[Any] = ["--option", "groups=8"]
    if told == "code":
        (theirs / "modeling_codegen.py").write_text(CODE)
        flags = []
    elif told == "like":
        (theirs / "config.json").unlink()
        flags += ["--like", tmp_path / "codegen2.toml"]
        spec = read_spec(tmp_path / "four")
        described = {"family": "codegen2", "model": spec.values()}
        (tmp_path / "codegen2.toml").write_text(toml.dumps(described))
    done = command("import", theirs, tmp_path / "ours", *flags).ok()
    assert not (tmp_path / "mark").exists()
    assert "left out (3): transformer.h.0.attn.causal_mask" in done.err
    assert ("note: option groups = 8" in done.err) == (told == "code")
    same_logits(flyweight.load(tmp_path / "ours", engine="torch"), model)
    first, second = (bytes_of(tmp_path / at)["model.safetensors"] for at in ("four", "ours"))
    assert first == second
    done = command("export", tmp_path / "ours", tmp_path / "back", "--to", "hf").ok()
    assert "CodeGenForCausalLM" in done.out
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(same_bits(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_codegen2_that_does_not_say_its_groups(
    made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    theirs, model = made("codegen")
    codegen2(theirs, model)
    command("import", theirs, tmp_path / "ours").failed("groups (8 or 4)", "--option", "--fit")
    for code in ("mp_num = 8\nmp_num = 4\n", "mp_num = 16\n", "mp_num = cores\n"):
        (theirs / "modeling_codegen.py").write_text(code)
        command("import", theirs, tmp_path / "ours").failed("groups (8 or 4)")
    config = json.loads((theirs / "config.json").read_text()) | {"head_dim": 5}
    (theirs / "config.json").write_text(json.dumps(config))
    command("import", theirs, tmp_path / "ours").failed("head_dim = 5")
    config |= {"head_dim": 8, "n_head": 6}
    (theirs / "config.json").write_text(json.dumps(config))
    refused = command("import", theirs, tmp_path / "ours", "--option", "groups=8")
    refused.failed("heads in 8 groups; 6 heads")


def test_the_exported_folder_talks(
    made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    theirs, _ = made("llama")
    (theirs / "generation_config.json").unlink()
    command("import", theirs, tmp_path / "ours").ok()
    command("export", tmp_path / "ours", tmp_path / "back").ok()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    mine = flyweight.load_tokenizer(tmp_path / "ours")
    text = "Grüße, \u4f60\u597d!\n\tdef f(x): pass"
    assert tokenizer(text)["input_ids"] == mine.encode(text, bos=True)
    assert tokenizer.decode(mine.encode(text)) == text
    assert tokenizer.eos_token_id == mine.eot_id and tokenizer.pad_token_id == mine.pad_id
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert model.generation_config.eos_token_id == mine.eot_id
    made_text = model.generate(
        **tokenizer("To be", return_tensors="pt"), max_new_tokens=12, do_sample=False
    )
    ours = flyweight.load(tmp_path / "ours", engine="torch")
    ids = ours.tokenizer.encode(ours.generate("To be", 12))
    assert made_text[0].tolist()[6 : 6 + min(3, len(ids))] == ids[:3] or not ids
    card = (tmp_path / "back" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "LlamaForCausalLM" in card


def test_what_a_tokenizer_is_told_is_kept(
    made: Callable[..., Any], command: Callable[..., Any], tmp_path: Path
) -> None:
    theirs, _ = made("llama")
    settings = {"add_bos_token": False, "chat_template": "{{ messages }}", "auto_map": {"a": "b.c"}}
    (theirs / "tokenizer_config.json").write_text(json.dumps(settings))
    SubwordTokenizer.train("bpe", 290, [TEXT.decode()]).save(theirs / "tokenizer.json")
    command("import", theirs, tmp_path / "ours").ok()
    assert not flyweight.load(tmp_path / "ours", engine="torch").tokenizer.add_bos
    command("export", tmp_path / "ours", tmp_path / "back").ok()
    kept = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert kept == {"add_bos_token": False, "chat_template": "{{ messages }}"}
