"""``flyweight.load``: any MODEL by its path or name, ready to talk."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flyweight.files.from_gguf import OWN, Dequantised, open_gguf
from flyweight.files.huggingface import as_ours, is_huggingface_folder, open_source
from flyweight.files.model_folder import TOKENIZER, WEIGHTS, is_model_folder, read_family, read_spec
from flyweight.files.run import RunFolder, read_checkpoint_state
from flyweight.files.tensors import TensorFile, Tensors
from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.spec.table import nearest
from flyweight.text.load import load_tokenizer

if TYPE_CHECKING:
    from flyweight.model.runtime import TorchModel


def load(model: str | os.PathLike[str], threads: int | None = None) -> TorchModel:
    """The model at ``model``: a run folder, RUN@STEP, a checkpoint's, a model or a Hugging Face
    folder, a GGUF file.

    Raises FlyweightError where there is none, CorruptFileError where it is damaged.
    """
    name = os.fspath(model)
    found = stored(name)
    import torch

    from flyweight.model.decoder import Decoder
    from flyweight.model.runtime import TorchModel
    from flyweight.model.weights import fill_weights

    if threads is not None:
        if threads < 1:
            raise FlyweightError(f"threads = {threads}: 1 or more is wanted")
        torch.set_num_threads(threads)
    decoder = Decoder(found.spec)
    fill_weights(decoder, found.weights, found.path)
    return TorchModel(name, decoder, load_tokenizer(found.tokenizer))


class Stored(NamedTuple):
    """A model as it lies on the disk: ``weights`` in our names, none of them read yet.

    ``family`` is where it was imported from, if it was.
    """

    name: str
    family: str
    spec: ModelSpec
    path: Path
    weights: Tensors
    tokenizer: Path


def stored(name: str) -> Stored:
    """What ``name`` stands for. Raises FlyweightError where there is no model."""
    path = Path(name).expanduser()
    called = Path(os.path.abspath(path)).name
    if is_huggingface_folder(path) and not (path / "run.toml").is_file():
        source = open_source(path)
        model = as_ours(source)
        return Stored(called, source.family, model.spec, path, model, path)
    if path.suffix == ".gguf" and path.is_file():
        opened = open_gguf(path)
        for note in opened.notes:
            warnings.warn(f"{path}: {note}", stacklevel=2)
        family = "" if opened.architecture == OWN else opened.architecture
        return Stored(opened.name, family, opened.spec, path, Dequantised(opened), opened.tokenizer)
    spec, weights, tokenizer = _locate(name)
    family = read_family(path) if is_model_folder(path) else ""
    return Stored(called, family, spec, weights, TensorFile(weights), tokenizer)


def _locate(name: str) -> tuple[ModelSpec, Path, Path]:
    """(spec, weights file, tokenizer file) of what ``name`` stands for."""
    path = Path(name).expanduser()
    at = re.fullmatch(r"(.+)@(\d+)", name)
    if not path.exists() and at:
        run = RunFolder.open(Path(at[1]).expanduser())
        return _from_run(run, int(at[2]))
    if path.is_dir():
        if is_model_folder(path):
            return read_spec(path), path / WEIGHTS, path / TOKENIZER
        if (path / "run.toml").is_file():
            run = RunFolder.open(path)
            steps = run.steps()
            if not steps:
                raise FlyweightError(f"{path} has no complete checkpoint yet")
            return _from_run(run, steps[-1])
        if path.name.isdigit() and path.parent.name == "checkpoints":
            return _from_run(RunFolder.open(path.parent.parent), int(path.name))
        raise FlyweightError(
            f"{path} is no model: neither a run folder, nor a checkpoint's, nor a model folder"
            " (model.toml and model.safetensors), nor a Hugging Face folder (config.json)"
        )
    if path.exists():
        raise FlyweightError(
            f"{path} is a file; a run folder, a model folder or a .gguf file is wanted"
        )
    near = nearest(path.name, _siblings(path)) if path.parent.is_dir() else ""
    raise FlyweightError(f"no model at {path}{near}")


def _siblings(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p.is_dir())[:50]


def _from_run(run: RunFolder, step: int) -> tuple[ModelSpec, Path, Path]:
    if step not in run.steps():
        have = ", ".join(str(s) for s in run.steps()) or "none"
        raise FlyweightError(f"{run.path} has no checkpoint at step {step}; it has: {have}")
    folder = run.checkpoint_path(step)
    read_checkpoint_state(folder)
    tokenizer = run.model / TOKENIZER
    if not tokenizer.is_file():
        tokenizer = run.dataset()[0] / "tokenizer.json"
    return run.spec().model, folder / WEIGHTS, tokenizer
