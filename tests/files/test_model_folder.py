"""Our own model folder, its tensors, and `flyweight.load` on it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import flyweight  # noqa: E402
from flyweight.files import tensors  # noqa: E402
from flyweight.files.model_folder import is_model_folder, read_spec, write_model_folder  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.init import init_weights  # noqa: E402
from flyweight.spec.errors import CorruptFileError, FlyweightError  # noqa: E402
from flyweight.spec.model import ModelSpec  # noqa: E402
from flyweight.text.bytes import ByteTokenizer  # noqa: E402

SPEC = ModelSpec.parse(
    {
        "vocab_size": 258,
        "width": 16,
        "depth": 2,
        "context": 32,
        "attention": {"heads": 2},
        "feedforward": {"kind": "relu2", "hidden": 24},
        "input": {"kind": "patches", "width": 12, "hidden": 16, "size": 8},
        "ngrams": {"orders": [2, 3], "rows": 32, "dim": 4},
        "matches": {"lengths": [2]},
        "share": {"feedforward": "all"},
    }
)


@pytest.fixture
def decoder() -> Decoder:
    model = Decoder(SPEC)
    init_weights(model, 1)
    return model.eval()


@pytest.fixture
def weights(decoder: Decoder, tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    tensors.write_tensors(path, decoder.state_dict())
    return path


def test_equal_tensors_make_equal_files(decoder: Decoder, weights: Path, tmp_path: Path) -> None:
    state = decoder.state_dict()
    backwards = {name: state[name].clone() for name in reversed(state)}
    tensors.write_tensors(tmp_path / "again", backwards)
    assert (tmp_path / "again").read_bytes() == weights.read_bytes()
    read = tensors.read_tensors(weights)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_tensors_of_any_layout_and_kind_come_back(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    wanted = {
        "transposed": base.t(),
        "a part": base[1:3],
        "scalar": torch.tensor(3.5),
        "bf16": base.bfloat16(),
        "whole numbers": torch.arange(5),
        "empty": torch.empty(0, 3),
    }
    tensors.write_tensors(tmp_path / "t", wanted)
    read = tensors.read_tensors(tmp_path / "t")
    for name, tensor in wanted.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_files_that_are_no_tensors_are_named(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(FlyweightError, match="no such file"):
        tensors.read_tensors(tmp_path / "absent")
    for size in (0, 7, 100, weights.stat().st_size - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(weights.read_bytes()[:size])
        with pytest.raises(CorruptFileError, match=r"cut\.safetensors is not a whole"):
            tensors.read_tensors(cut)


@pytest.mark.parametrize("links", [True, False])
def test_a_model_folder_loads_as_what_was_written(
    decoder: Decoder, weights: Path, tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def refuse(*_: Any) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    folder = tmp_path / "model"
    for _ in range(2):  # the second time over the first
        write_model_folder(folder, "tiny", SPEC, weights, ByteTokenizer().to_json())
    assert os.path.samefile(weights, folder / "model.safetensors") == links
    names = {"model.toml", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert is_model_folder(folder)
    assert read_spec(folder) == SPEC
    weights.unlink()  # as when the checkpoint is thinned away
    loaded = flyweight.load(folder, engine="torch")
    row = torch.tensor([[257, *b"import os\nimport sys"]])
    with torch.no_grad():
        assert torch.equal(loaded.decoder(row), decoder(row))
    again = flyweight.load(str(folder), engine="torch")
    assert again.generate("a", 4) == loaded.generate("a", 4)


def test_new_weights_replace_the_old_and_leave_the_rest(
    decoder: Decoder, weights: Path, tmp_path: Path
) -> None:
    folder, json = tmp_path / "model", ByteTokenizer().to_json()
    write_model_folder(folder, "tiny", SPEC, weights, json)
    before = (folder / "model.toml").stat().st_mtime_ns
    init_weights(decoder, 2)
    newer = tmp_path / "newer"
    tensors.write_tensors(newer, decoder.state_dict())
    write_model_folder(folder, "tiny", SPEC, newer, json)
    assert (folder / "model.safetensors").read_bytes() == newer.read_bytes()
    assert weights.read_bytes() != newer.read_bytes(), "the old file was not written through"
    assert (folder / "model.toml").stat().st_mtime_ns == before


def test_a_model_that_does_not_fit_its_spec_is_refused(weights: Path, tmp_path: Path) -> None:
    folder, json = tmp_path / "model", ByteTokenizer().to_json()
    wider = ModelSpec.parse({**SPEC.values(), "width": 32})
    write_model_folder(folder, "tiny", wider, weights, json)
    with pytest.raises(CorruptFileError, match="does not fit its spec.*blocks.0.attention"):
        flyweight.load(folder)


def test_what_is_no_model_is_said_to_be_none(weights: Path, tmp_path: Path) -> None:
    write_model_folder(tmp_path / "model", "tiny", SPEC, weights, ByteTokenizer().to_json())
    with pytest.raises(FlyweightError, match="did you mean `model`"):
        flyweight.load(tmp_path / "modle")
    with pytest.raises(FlyweightError, match="is a file; a run folder, a model folder or a .gguf"):
        flyweight.load(weights)
    with pytest.raises(FlyweightError, match="is no model"):
        flyweight.load(tmp_path)
    with pytest.raises(FlyweightError, match="threads = 0"):
        flyweight.load(tmp_path / "model", threads=0)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(FlyweightError, match="no model at"):
        flyweight.load(tmp_path / "model")
