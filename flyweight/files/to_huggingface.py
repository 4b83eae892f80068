"""A model of ours as a folder that `transformers` loads without remote code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flyweight import __version__
from flyweight.files import names
from flyweight.files.atomic import new_folder, write_text
from flyweight.files.card import card
from flyweight.files.huggingface import CONFIG, KEPT, read_json, refuse_existing
from flyweight.files.names import Piece
from flyweight.files.tensors import KINDS, Kind, Tensors, dtype_of, stream_tensors
from flyweight.files.to_config import Target, target
from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.text.load import load_tokenizer
from flyweight.text.tokenizer import Tokenizer
from flyweight.zoo.layout import layout

if TYPE_CHECKING:
    import torch


class _Source(NamedTuple):
    """Of what a published tensor is made: a piece of our tensor, times ``factor``."""

    ours: str
    piece: Piece
    factor: float


class Exported:
    """Our tensors under published names; each is made when it is asked for.

    ``weights`` holds the tensors of ``spec`` in our names.
    """

    def __init__(self, spec: ModelSpec, weights: Tensors, family: str = "") -> None:
        self.spec, self.weights, self.target = spec, weights, target(spec, family)
        # Our own names, and a body for every use in theirs.
        shared = spec.values() | {"tie_embeddings": self.target.expanded.tie_embeddings}
        planned = names.plan(ModelSpec.parse(shared), layout(self.target.layout))
        self._sources: dict[str, _Source] = {}
        self.kinds: dict[str, Kind] = {}
        for each in planned:
            ours = self._stored(each.name)
            factor = self._factor(each.name) if self.target.folded else 1.0
            for piece in (piece for copy in each.copies for piece in copy):
                self._sources[piece.name] = _Source(ours, piece, factor)
                self.kinds[piece.name] = Kind(weights.kinds[ours].dtype, piece.shape)

    def _stored(self, name: str) -> str:
        """Where the tensor lies: a head that multipliers untied is made of the embeddings."""
        if name == "head.weight" and self.spec.tie_embeddings:
            name = "embedding.weight"
        kind = self.weights.kinds.get(name)
        if kind is None or kind.dtype not in KINDS:
            raise FlyweightError(f"the weights have no {name} in one of {', '.join(KINDS)}")
        return name

    def _factor(self, name: str) -> float:
        scale = self.spec.scale
        if name in ("embedding.weight", "embedding.positions"):
            return scale.embedding
        if name.startswith("head."):
            return scale.logits
        branch = name.rpartition(".")[0].endswith(("attention.output", "feedforward.down"))
        return scale.residual if branch else 1.0

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        ours, piece, factor = self._sources[name]
        stored = self.weights[ours]
        if len(piece.segments) == 1 and len(stored) == piece.segments[0].rows:
            made = stored.t() if piece.transposed else stored
        else:
            made = torch.empty(piece.shape, dtype=dtype_of(self.kinds[name]))
            rows_first = made.t() if piece.transposed else made
            for at, theirs, rows in piece.segments:
                rows_first[theirs : theirs + rows] = stored[at : at + rows]
        return made if factor == 1.0 else (made.float() * factor).to(made.dtype)


def write_huggingface(
    spec: ModelSpec, weights: Tensors, tokenizer: Path, out: Path, name: str, family: str = ""
) -> Target:
    """Write ``out``, which must not exist: whole or not at all.

    ``tokenizer`` is a tokenizer.json or its folder; what lies beside it of KEPT goes along.
    Raises FlyweightError where no class of `transformers` computes the model.
    """
    refuse_existing(out)
    exported = Exported(spec, weights, family)
    words = load_tokenizer(tokenizer)
    beside = tokenizer if tokenizer.is_dir() else tokenizer.parent
    kept = {n: beside / n for n in KEPT if (beside / n).is_file()}
    config = exported.target.config | _ids(words)
    dtypes = sorted({kind.dtype for kind in exported.kinds.values()}, key=list(KINDS).index)
    config |= {"torch_dtype": KINDS[dtypes[-1]], "use_cache": True}
    with new_folder(out) as folder:
        settings = kept.pop("tokenizer_config.json", None)
        for each, path in kept.items():
            write_text(folder / each, path.read_text(encoding="utf-8"))
        _write_json(folder / CONFIG, config)
        write_text(folder / "tokenizer.json", words.to_json())
        said = _no_code(settings) if settings else _tokenizer_config(words, spec)
        _write_json(folder / "tokenizer_config.json", said)
        if "generation_config.json" not in kept:
            start = {"decoder_start_token_id": spec.encoder.start} if spec.encoder else {}
            _write_json(folder / "generation_config.json", _ids(words) | start)
        write_text(folder / "README.md", card(name, spec, exported.target, __version__))
        metadata = {"format": "pt"}
        stream_tensors(folder / "model.safetensors", exported.kinds, exported, metadata)
        refuse_existing(out)
    return exported.target


def _ids(words: Tokenizer) -> dict[str, Any]:
    return {
        "bos_token_id": words.bos_id if words.add_bos else None,
        "eos_token_id": words.eot_id,
        "pad_token_id": words.pad_id,
    }


def _tokenizer_config(words: Tokenizer, spec: ModelSpec) -> dict[str, Any]:
    ids = {"bos_token": words.bos_id, "eos_token": words.eot_id, "pad_token": words.pad_id}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": words.add_bos,
        **{name: _text(words, id) for name, id in ids.items() if id is not None},
    }


def _text(words: Tokenizer, id: int) -> str:
    """A token as tokenizer.json writes it."""
    document = json.loads(words.to_json())
    for added in document.get("added_tokens") or ():
        if added["id"] == id:
            return str(added["content"])
    vocab = document["model"]["vocab"]
    if isinstance(vocab, dict):
        return next(token for token, number in vocab.items() if number == id)
    return str(vocab[id][0])


def _no_code(path: Path) -> dict[str, Any]:
    """tokenizer_config.json without what would ask for remote code."""
    return {key: value for key, value in read_json(path).items() if key != "auto_map"}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
