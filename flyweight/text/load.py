"""A tokenizer from wherever one may lie: its file in any of their formats, a model's, a run's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flyweight.spec.collection import no_collection
from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.byte_level import read_vocabulary_and_merges
from flyweight.text.bytes import ByteTokenizer, is_byte_tokenizer
from flyweight.text.gguf_metadata import read_metadata
from flyweight.text.gguf_vocabulary import OWN, vocabulary_of
from flyweight.text.pieces import CONTROL, USER_DEFINED, Pieces, holds_pieces, read_document
from flyweight.text.subword import SubwordTokenizer
from flyweight.text.tokenizer import Tokenizer, read_json

# What is looked for in a folder, in this order: where two are named, both are wanted.
_PLACES = (
    ("tokenizer.json",),
    ("model/tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("encoder.json", "vocab.bpe"),
    ("vocab.json", "merges.txt"),
)


# T5's tokenizer has as many where its configuration does not say.
_SENTINELS, _MOST_SENTINELS = 100, 100_000


@no_collection()
def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer at ``path``: a tokenizer.json, a SentencePiece .model, a .gguf, or a folder.

    Looked for in a folder: tokenizer.json (a model, a dataset, a Hugging Face folder),
    model/tokenizer.json (a run), tokenizer.model or spiece.model, and GPT-2's two files
    (encoder.json and vocab.bpe, or vocab.json and merges.txt). A tokenizer_config.json beside it
    decides on the beginning-of-text token; a bare .model adds none. Whatever it came from, the
    tokenizer saves as a tokenizer.json that loads to the same.

    Raises FlyweightError where there is none or it is of a kind that is not supported,
    CorruptFileError where it is damaged.
    """
    files = _find(Path(path).expanduser())
    config = _config(files[0].with_name("tokenizer_config.json"))
    with _named(files[0]):
        return _read(files, config)


def gguf_tokenizer(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    """``load_tokenizer`` of a GGUF file whose metadata was read already."""
    with _named(path):
        return _of_gguf(metadata)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Errors that say where."""
    try:
        yield
    except FlyweightError as error:
        if str(file.parent) in str(error):
            raise
        raise type(error)(f"{file}: {error}") from None


def _read(files: tuple[Path, ...], config: dict[str, Any]) -> Tokenizer:
    file = files[0]
    if len(files) == 2:
        of_class = config.get("tokenizer_class")
        return _subword(read_vocabulary_and_merges(*files, of_class), config)
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
    except OSError as error:
        raise FlyweightError(f"{file} cannot be read: {error.strerror}") from None
    if magic == b"GGUF" or file.suffix == ".gguf":
        return _of_gguf(read_metadata(file))
    if file.suffix == ".model":
        from flyweight.text.piece_tokenizer import PieceTokenizer
        from flyweight.text.sentencepiece import read_model

        return PieceTokenizer(_configured(read_model(file.read_bytes()), config))
    return _of_document(read_json(file), config)


def _of_gguf(metadata: dict[str, Any]) -> Tokenizer:
    """The vocabulary of a GGUF file as its keys say it, or the whole tokenizer.json that a file of
    ours may hold besides."""
    found = vocabulary_of(metadata)
    if isinstance(found, Pieces):
        from flyweight.text.piece_tokenizer import PieceTokenizer

        return PieceTokenizer(found)
    return _of_document(found, {}, metadata.get(OWN))


def _of_document(
    document: dict[str, Any], config: dict[str, Any], written: str | None = None
) -> Tokenizer:
    if is_byte_tokenizer(document):
        return ByteTokenizer()
    if holds_pieces(document):
        from flyweight.text.piece_tokenizer import PieceTokenizer

        return PieceTokenizer(read_document(document))
    return _subword(document, config, written)


def _subword(
    document: dict[str, Any], config: dict[str, Any], written: str | None = None
) -> SubwordTokenizer:
    add_bos = config.get("add_bos_token")
    return SubwordTokenizer(
        document,
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        bos=_token(config.get("bos_token")),
        eot=_token(config.get("eos_token")),
        written=written,
    )


def _find(path: Path) -> tuple[Path, ...]:
    if path.is_dir():
        for place in _PLACES:
            found = tuple(path / name for name in place)
            if all(file.is_file() for file in found):
                return found
        raise FlyweightError(
            f"no tokenizer in {path}: looked for"
            f" {', '.join(' with '.join(place) for place in _PLACES)}; name a tokenizer's file,"
            " a model's folder or a run's folder"
        )
    if not path.exists():
        raise FlyweightError(f"no such tokenizer: {path}")
    return (path,)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} cannot be read as JSON: {error}") from None
    return config if isinstance(config, dict) else {}


def _token(value: Any) -> str | None:
    """A token as tokenizer_config.json writes it: its text, or a table with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


# -- what a tokenizer_config.json says of the .model beside it


def _configured(pieces: Pieces, config: dict[str, Any]) -> Pieces:
    pieces = _with_sentinels(_with_added(pieces, config), config)
    ids = {piece: id for id, piece in enumerate(pieces.pieces)}
    bos_id = ids.get(_token(config.get("bos_token")) or "", pieces.bos_id)
    eot_id = ids.get(_token(config.get("eos_token")) or "", pieces.eot_id)
    add_bos = config.get("add_bos_token")
    if not isinstance(add_bos, bool):
        # transformers' Llama tokenizer adds one unless it is told not to.
        add_bos = str(config.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
    add_eot = _is_t5(config) and eot_id is not None
    return replace(pieces, bos_id=bos_id, eot_id=eot_id, add_bos=add_bos, add_eot=add_eot)


def _is_t5(config: dict[str, Any]) -> bool:
    return str(config.get("tokenizer_class")).removesuffix("Fast") == "T5Tokenizer" or (
        "extra_ids" in config
    )


def _with_sentinels(pieces: Pieces, config: dict[str, Any]) -> Pieces:
    """With T5's sentinels behind the pieces: <extra_id_0> last, as many as ``extra_ids`` says."""
    count = config.get("extra_ids", _SENTINELS if _is_t5(config) else 0)
    if type(count) is not int or not 0 <= count <= _MOST_SENTINELS:
        raise CorruptFileError(f"tokenizer_config.json: extra_ids = {count!r} is no number of them")
    known = set(pieces.pieces)
    names = tuple(n for i in reversed(range(count)) if (n := f"<extra_id_{i}>") not in known)
    return replace(
        pieces,
        pieces=pieces.pieces + names,
        types=pieces.types + (CONTROL,) * len(names),
        scores=pieces.scores + (0.0,) * len(names),
    )


def _with_added(pieces: Pieces, config: dict[str, Any]) -> Pieces:
    """With the tokens that `added_tokens_decoder` has behind those of the .model."""
    added = config.get("added_tokens_decoder") or {}
    names, types = list(pieces.pieces), list(pieces.types)
    try:
        tokens = sorted((int(id), _token(token), token) for id, token in added.items())
    except (AttributeError, TypeError, ValueError):
        raise CorruptFileError(
            "tokenizer_config.json: its added_tokens_decoder is no list of tokens"
        ) from None
    for id, content, token in tokens:
        if (
            content is None
            or id < 0
            or (id < len(names) and names[id] != content)
            or id > len(names)
        ):
            raise FlyweightError(
                f"tokenizer_config.json has the token {content!r} as id {id}, which does not fit"
                f" the {len(pieces.pieces)} pieces of the .model; name its tokenizer.json"
            )
        if id == len(names):
            names.append(content)
            special = isinstance(token, dict) and token.get("special")
            types.append(CONTROL if special else USER_DEFINED)
    zeros = (0.0,) * (len(names) - len(pieces.pieces))
    return replace(pieces, pieces=tuple(names), types=tuple(types), scores=pieces.scores + zeros)
