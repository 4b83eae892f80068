"""A Hugging Face folder as a model: config.json, weights in one file or many, tokenizer.

Nothing in the folder is run, and nothing is changed. Names in an index are names of files beside
it, and of nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flyweight.files.atomic import new_folder, write_text
from flyweight.files.config_json import describe
from flyweight.files.model_folder import SPEC, TOKENIZER, WEIGHTS, is_model_folder
from flyweight.files.pickles import PickleFile
from flyweight.files.published import Published, same_bits
from flyweight.files.tensors import Kind, TensorFile, Tensors
from flyweight.spec import toml
from flyweight.spec.errors import ConfigurationError, CorruptFileError, FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.text.load import load_tokenizer
from flyweight.zoo import catalog
from flyweight.zoo.layout import Layout, layout, of_family

if TYPE_CHECKING:
    import torch

    from flyweight.files.tensors import Bits

CONFIG = "config.json"
# Where weights are looked for, the first that is there.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What says how to use a model, kept beside it on import and given back on export.
KEPT = ("tokenizer_config.json", "generation_config.json", "chat_template.jinja")
# No configuration or index is larger than this; one that is is not read.
_MOST_JSON = 64 << 20


def is_huggingface_folder(path: Path) -> bool:
    return (path / CONFIG).is_file() and not is_model_folder(path)


class Shards:
    """Tensors spread over several files, each opened once."""

    def __init__(self, parts: list[Tensors]) -> None:
        self._of = {name: part for part in parts for name in part.kinds}
        self.kinds: dict[str, Kind] = {n: part.kinds[n] for n, part in self._of.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._of[name][name]

    def bits(self, name: str) -> Bits:
        return self._of[name].bits(name)


class Source(NamedTuple):
    """A folder opened: what it says it is, under which names, and where its tensors are.

    ``family`` is config.json's model_type, or that of the zoo; ``options`` are those of the layout
    that the folder itself settles.
    """

    path: Path
    name: str
    family: str
    spec: ModelSpec
    layout: Layout
    tensors: Tensors
    notes: tuple[str, ...]
    options: dict[str, str]


def open_source(path: Path, like: str | None = None) -> Source:
    """Open a folder; ``like`` (a zoo name or a TOML file with a spec) overrules its config.json.

    Raises FlyweightError or CorruptFileError naming what is wrong.
    """
    if not path.is_dir():
        raise FlyweightError(f"{path} is no folder; a Hugging Face folder is wanted")
    notes: tuple[str, ...] = ()
    if like is not None:
        family, spec, names = _alike(like)
        name = like if like in catalog.names() else path.resolve().name
    else:
        if not (path / CONFIG).is_file():
            raise FlyweightError(f"{path} has no {CONFIG}; name the model with --like")
        values = read_json(path / CONFIG)
        described = describe(values, str(path / CONFIG))
        family = str(values["model_type"])
        spec, names, name = described.spec, layout(described.layout), path.resolve().name
        notes = tuple(
            f"{CONFIG}: `{key}` is not known and was not used" for key in described.unused
        )
    tensors, options = open_weights(path), _settled(path, names)
    if names.name == "t5":
        spec = _with_its_head(spec, tensors, names)
    notes += tuple(f"option {n} = {c}, as the folder's own code has it" for n, c in options.items())
    return Source(path, name, family, spec, names, tensors, notes, options)


def _settled(path: Path, names: Layout) -> dict[str, str]:
    """CodeGen2's groups of heads, which nothing says but its own code: read, and not run."""
    code = path / "modeling_codegen.py"
    if "groups" not in names.options or not code.is_file() or code.stat().st_size > _MOST_JSON:
        return {}
    text = code.read_text(encoding="utf-8", errors="replace")
    said = set(re.findall(r"^\s*mp_num = (\d+)\s*$", text, re.MULTILINE))
    known = len(said) == 1 and said <= names.options["groups"].keys()
    return {"groups": said.pop()} if known else {}


def _alike(like: str) -> tuple[str, ModelSpec, Layout]:
    if not like.endswith(".toml"):
        entry = catalog.get(like)
        found = of_family(entry.family)
        if found is None:
            raise FlyweightError(
                f"--like {like}: no checkpoint of the family `{entry.family}` was published,"
                " so its names are not known"
            )
        return entry.family, entry.spec, found
    values = toml.read(like)
    if "model" not in values or "family" not in values:
        raise ConfigurationError(
            f"{like}: `family` (whose names the tensors have) and a [model] table are wanted"
        )
    family = str(values["family"])
    found = of_family(family) or layout(family)
    return family, ModelSpec.parse(values["model"], "model"), found


def _with_its_head(spec: ModelSpec, tensors: Tensors, names: Layout) -> ModelSpec:
    """T5's head is its embedding unless the file has another: its configuration does not tell.

    So transformers does: version 5 writes `tie_word_embeddings = true` whatever the weights are.
    """
    head, embedding = (names.names[ours][0].name for ours in ("head.weight", "embedding.weight"))
    own = head in tensors.kinds
    if own and embedding in tensors.kinds:
        own = not same_bits(tensors, head, embedding)
    return ModelSpec.parse({**spec.values(), "tie_embeddings": not own})


def as_ours(source: Source, options: Mapping[str, str] | None = None) -> Published:
    """The folder's weights as a model of ours, checked tensor by tensor; nothing is read yet."""
    chosen = {**source.options, **(options or {})}
    return Published(source.path, source.spec, source.layout, source.tensors, chosen)


def open_weights(path: Path) -> Tensors:
    """The tensors of a folder, from safetensors where there are any, else from ``.bin``."""
    for name in _WEIGHTS:
        index = path / f"{name}.index.json"
        if index.is_file():
            return _sharded(path, index)
        if (path / name).is_file():
            return _open(path / name)
    looked = ", ".join(f"{name} or {name}.index.json" for name in _WEIGHTS)
    raise FlyweightError(f"{path} has no weights; looked for {looked}")


def _open(file: Path) -> Tensors:
    return PickleFile(file) if file.suffix == ".bin" else TensorFile(file)


def _sharded(path: Path, index: Path) -> Tensors:
    wanted = read_json(index).get("weight_map")
    if not isinstance(wanted, dict) or not all(isinstance(v, str) for v in wanted.values()):
        raise CorruptFileError(f"{index} has no table `weight_map` of file names")
    suffix = ".bin" if ".bin." in index.name else ".safetensors"
    files = sorted(set(wanted.values()))
    for name in files:
        if Path(name).name != name or "\\" in name or "\0" in name or not name.endswith(suffix):
            raise CorruptFileError(
                f"{index} names {name!r}: the name of a {suffix} file beside it is wanted"
            )
    parts = {name: _open(path / name) for name in files}
    for tensor, name in wanted.items():
        if tensor not in parts[name].kinds:
            raise CorruptFileError(f"{index} says that {tensor} is in {name}, which lacks it")
    seen: dict[str, str] = {}
    for name, part in parts.items():
        for tensor in part.kinds:
            if tensor in seen:
                raise CorruptFileError(f"{path}: {tensor} is in both {seen[tensor]} and {name}")
            seen[tensor] = name
    return Shards(list(parts.values()))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the folder. Raises CorruptFileError naming it."""
    if path.stat().st_size > _MOST_JSON:
        raise CorruptFileError(f"{path} is larger than any configuration ({_MOST_JSON} bytes)")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CorruptFileError(f"{path} is no JSON object")
    return values


def write_import(
    source: Source, model: Published, out: Path, tokenizer: Path | None = None
) -> None:
    """Write our own model folder to ``out``, which must not exist; whole or not at all."""
    refuse_existing(out)
    if model.where.resolve() in out.resolve().parents:
        raise FlyweightError(f"{out} lies in {model.where}, which import leaves as it is")
    text = load_tokenizer(tokenizer or model.where).to_json()
    kept = [n for n in KEPT if (model.where / n).is_file()]
    for each in kept:
        if each.endswith(".json"):
            read_json(model.where / each)
    with new_folder(out) as folder:
        described = {"name": source.name, "family": source.family, "model": model.spec.values()}
        write_text(folder / SPEC, toml.dumps(described))
        write_text(folder / TOKENIZER, text)
        for each in kept:
            write_text(folder / each, (model.where / each).read_text(encoding="utf-8"))
        model.write(folder / WEIGHTS)
        # Once more before the rename, which would replace an empty folder.
        refuse_existing(out)


def refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise FlyweightError(f"{out} exists already; name one that does not, or remove it")
