"""`flyweight import` and `flyweight export` as a person meets them: what they say and leave."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

import flyweight  # noqa: E402
from flyweight.files import published, to_huggingface  # noqa: E402

Command = Callable[..., Any]


@pytest.fixture
def exported(finished: Callable[[str], Path], tmp_path: Path, command: Command) -> Path:
    """A trained run of ours as a Hugging Face folder."""
    command("export", str(finished("bpe")), "hf").ok()
    return tmp_path / "hf"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_goes_out_and_comes_back_to_the_bit(
    exported: Path, finished: Callable[[str], Path], command: Command
) -> None:
    assert {path.name for path in exported.iterdir()} == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    before = everything(exported)
    done = command("import", "hf", "back", "--json").ok()
    result = done.json()
    assert result["layout"] == "llama" and result["out"] == "back" and result["options"] == {}
    assert everything(exported) == before
    run, back = finished("bpe") / "model", Path("back")
    first, second = (load_file(at / "model.safetensors") for at in (run, back))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (back / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    prompt = ["def ", "--max-tokens", "8", "--temperature", "0"]
    said = [command("generate", at, *prompt).ok().out for at in (str(run), "back", "hf")]
    assert said[0] == said[1] == said[2]


def test_a_real_process_does_both(program: Any, finished: Callable[[str], Path]) -> None:
    done = program("export", str(finished("bpe")), "hf", "--to", "hf").ok()
    assert done.out == "hf: LlamaForCausalLM\n" and done.err == ""
    done = program("import", "hf", "ours").ok()
    assert done.out.startswith("ours: ") and "parameters" in done.out
    scored = program("eval", "hf", "--text", "texts", "--bytes", "4000", "--json").ok().json()
    again = program("eval", "ours", "--text", "texts", "--bytes", "4000", "--json").ok().json()
    assert scored == again and scored["held_out"]["bits_per_byte"] > 0


def test_every_tensor_that_does_not_fit_is_named(exported: Path, command: Command) -> None:
    tensors = load_file(exported / "model.safetensors")
    down = tensors.pop("model.layers.1.mlp.down_proj.weight")
    tensors["model.layers.1.mlp.down.weight"] = down
    norm = tensors["model.layers.0.input_layernorm.weight"]
    tensors["model.layers.0.input_layernorm.weight"] = norm[:-1].clone()
    save_file(tensors, exported / "model.safetensors")
    done = command("import", "hf", "ours")
    done.failed(
        "missing (1): model.layers.1.mlp.down_proj.weight",
        "unexpected (1): model.layers.1.mlp.down.weight",
        "misshapen (1): model.layers.0.input_layernorm.weight is [31], not [32]",
    )
    assert not Path("ours").exists()
    # A whole kind of tensor is one item of the list.
    whole = {n: t for n, t in tensors.items() if ".self_attn." not in n}
    save_file(whole, exported / "model.safetensors")
    done = command("import", "hf", "ours")
    done.failed("missing (9): model.layers.{0-1}.self_attn.q_proj.weight, ")


def test_kinds_that_are_no_weights_are_named(exported: Path, command: Command) -> None:
    tensors = load_file(exported / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj.weight"
    tensors[name] = tensors[name].half()
    save_file(tensors, exported / "model.safetensors")
    command("import", "hf", "ours").failed(name, "F16 and F32", "one of F16, BF16, F32, F64")
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, exported / "model.safetensors")
    command("import", "hf", "ours").failed(name, "I8")


def test_a_head_that_is_not_the_embedding_is_not_tied(exported: Path, command: Command) -> None:
    tensors = load_file(exported / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, exported / "model.safetensors")
    done = command("import", "hf", "tied").ok()
    assert "tied embedding.weight: 2 equal copies" in done.err
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, exported / "model.safetensors")
    command("import", "hf", "ours").failed("lm_head.weight", "differ")


def test_unknown_keys_of_the_configuration_are_said(exported: Path, command: Command) -> None:
    config = json.loads((exported / "config.json").read_text())
    config |= {"logit_softcap": 30.0, "use_something": False, "auto_map": {"AutoModel": "evil.py"}}
    (exported / "config.json").write_text(json.dumps(config))
    done = command("import", "hf", "ours").ok()
    assert "`logit_softcap` is not known and was not used" in done.err
    assert "use_something" not in done.err and "auto_map" not in done.err


def test_code_in_the_folder_is_not_run(exported: Path, command: Command) -> None:
    bomb = "import os\nos.mkdir('ran')\n"
    for name in ("modeling_llama.py", "configuration_llama.py", "tokenization_llama.py", "evil.py"):
        (exported / name).write_text(bomb)
    config = json.loads((exported / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_llama.LlamaConfig",
        "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM",
    }
    (exported / "config.json").write_text(json.dumps(config))
    command("import", "hf", "ours").ok()
    assert flyweight.load("hf").generate("a", 2) == flyweight.load("ours").generate("a", 2)
    assert not Path("ran").exists()
    assert not list(Path("ours").glob("*.py"))


@pytest.mark.parametrize("what", ["a folder", "an empty folder", "a file", "a broken link"])
@pytest.mark.parametrize("name", ["import", "export"])
def test_what_is_there_already_is_left_alone(
    name: str, what: str, exported: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("mine")
    elif what == "a broken link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        if what == "a folder":
            (out / "notes").write_text("mine")
    command(name, "hf", "out").failed("out exists already")
    if what == "a folder":
        assert everything(out) == {"notes": b"mine"}
    assert out.is_symlink() == (what == "a broken link")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_crash_midway_leaves_nothing(
    error: BaseException,
    exported: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = sorted(os.listdir(tmp_path))

    def fall(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(published, "stream_tensors", fall)
    monkeypatch.setattr(to_huggingface, "stream_tensors", fall)
    for name in ("import", "export"):
        assert command(name, "hf", "out").code != 0
        assert sorted(os.listdir(tmp_path)) == before


def test_mistakes_have_a_way_out(exported: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command("import", "empty", "ours").failed("has no config.json", "--like")
    command("import", "hf", "hf/ours").failed("lies in hf")
    command("import", "nowhere", "ours").failed("nowhere is no folder")
    command("import", "hf", "ours", "--option", "speed=high").failed("no option `speed`")
    command("import", "hf", "ours", "--option", "speed").failed("NAME=CHOICE")
    command("import", "hf", "ours", "--like", "mobilama-0.5b").failed(
        "did you mean `mobillama-0.5b`"
    )
    command("export", "hf", "out", "--to", "onnx").failed("--to onnx", "hf")
    shutil.copytree(exported, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    command("import", "bare", "ours").failed("has no weights", "pytorch_model.bin")
    command("generate", "bare", "a").failed("has no weights")
    shutil.copy(exported / "model.safetensors", tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    command("import", "bare", "ours").failed("no tokenizer in bare")
    assert not (tmp_path / "ours").exists()
    command("import", "bare", "ours", "--tokenizer", "hf/tokenizer.json").ok()


def test_a_byte_model_is_no_transformers_model(
    finished: Callable[[str], Path], command: Command, tmp_path: Path
) -> None:
    refused = command("export", str(finished("patches")), "out", "--to", "hf")
    refused.failed("no class of transformers computes this model", "input.kind = 'patches'")
    assert not (tmp_path / "out").exists()
