"""Our own model folder: model.toml (the spec), model.safetensors, tokenizer.json."""

from __future__ import annotations

import os
from pathlib import Path

from flyweight.files.atomic import sync, write_text
from flyweight.spec import toml
from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec

SPEC, WEIGHTS, TOKENIZER = "model.toml", "model.safetensors", "tokenizer.json"


def is_model_folder(path: Path) -> bool:
    return (path / SPEC).is_file() and (path / WEIGHTS).is_file()


def read_spec(folder: Path) -> ModelSpec:
    """The spec of a model folder. Raises ConfigurationError naming the file."""
    path = folder / SPEC
    values = toml.read(path)
    if "model" not in values:
        raise FlyweightError(f"{path} has no [model] table")
    return ModelSpec.parse(values["model"], "model")


def read_family(folder: Path) -> str:
    """The family that an imported model came from; "" where the folder says none."""
    return str(toml.read(folder / SPEC).get("family", ""))


def write_model_folder(
    folder: Path, name: str, spec: ModelSpec, weights: Path, tokenizer: str
) -> None:
    """Write or refresh a model folder; ``weights`` is a safetensors file to link or copy.

    Each file is replaced atomically, the weights last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = toml.dumps({"name": name, "model": spec.values()})
    for path, text in ((folder / SPEC, described), (folder / TOKENIZER, tokenizer)):
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    temporary = folder / f".{WEIGHTS}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        # A hard link costs no space and survives the checkpoint's removal.
        os.link(weights, temporary)
    except OSError:
        import shutil

        shutil.copyfile(weights, temporary)
        sync(temporary)
    os.replace(temporary, folder / WEIGHTS)
    # Where both are links of one file already, renaming does nothing and both stay.
    temporary.unlink(missing_ok=True)
    sync(folder)
