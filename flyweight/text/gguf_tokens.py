"""A tokenizer as the keys of a GGUF file: `tokenizer.ggml`, and ours where that says too little.

llama.cpp knows SentencePiece BPE ("llama") and byte-level BPE ("gpt2") among what there is here.
Where its keys cannot say everything, the whole tokenizer.json stands under ``flyweight.tokenizer``
besides, which Flyweight reads first.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from flyweight.spec.errors import FlyweightError
from flyweight.text.byte_level import CUTS, WHOLE_WORDS, byte_level_document
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.gguf_vocabulary import OWN, document_of
from flyweight.text.pieces import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    holds_pieces,
    read_document,
)
from flyweight.text.subword import SubwordTokenizer
from flyweight.text.tokenizer import EOT, Tokenizer, byte_characters, digest

_PREFIX = "tokenizer.ggml."
# ByteLevel's own pattern, and Digits', as CUTS writes them.
_GPT2, _DIGIT = CUTS["gpt-2"][0], r"\p{N}"
# Of the names for one way to cut words, the one that is written.
_NAMES = ("gpt-2", "llama-bpe", "dbrx", "qwen2", "smollm", "gpt-4o", "falcon", "default")


class Vocabulary(NamedTuple):
    """``keys`` for the file, and what llama.cpp will do otherwise than the tokenizer."""

    keys: dict[str, Any]
    notes: tuple[str, ...]


class _Tokens(NamedTuple):
    """What llama.cpp has for one of its models: the model's keys, token by id, and notes."""

    model: dict[str, Any]
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    notes: list[str]


def placeholder(size: int) -> Tokenizer:
    """A tokenizer of ``size`` tokens that reads bytes: for models without one of their own."""
    if size == ByteTokenizer.vocab_size:
        return ByteTokenizer()
    if size < 257:
        raise FlyweightError(
            f"a vocabulary of {size} tokens is too small for a placeholder: bytes take 257"
        )
    tokens = [*byte_characters(), EOT, *(f"[{id}]" for id in range(257, size))]
    vocab = {token: id for id, token in enumerate(tokens)}
    return SubwordTokenizer(byte_level_document(vocab, [], "gpt-2", [EOT]))


def vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The keys for ``tokenizer`` in a model of ``size`` tokens.

    A model with more tokens than its tokenizer gets unused ones behind them. Raises FlyweightError
    where it has fewer.
    """
    if tokenizer.vocab_size > size:
        raise FlyweightError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {size}: they do not"
            " belong together"
        )
    document = json.loads(tokenizer.to_json())
    found = _found(tokenizer, document)
    if found is None:
        note = (
            "llama.cpp has no tokenizer like this one: to it the file is a model of token ids"
            " alone; Flyweight reads the tokenizer from it"
        )
        return Vocabulary({f"{_PREFIX}model": "none", OWN: tokenizer.to_json()}, (note,))
    keys = found.model
    more = range(len(found.tokens), size)
    keys["tokens"] = found.tokens + [f"[PAD{id}]" for id in more]
    keys["token_type"] = found.types + [UNUSED for _ in more]
    if found.scores is not None:
        keys["scores"] = found.scores + [-1e4 for _ in more]
    for name, id in (
        ("bos", tokenizer.bos_id),
        ("eos", tokenizer.eot_id),
        ("padding", tokenizer.pad_id),
    ):
        if id is not None:
            keys[f"{name}_token_id"] = id
    keys["add_bos_token"] = tokenizer.add_bos
    written = {_PREFIX + key: value for key, value in keys.items()}
    if not _reads_back(written, tokenizer):
        written[OWN] = tokenizer.to_json()
    return Vocabulary(written, tuple(found.notes))


def _reads_back(keys: dict[str, Any], tokenizer: Tokenizer) -> bool:
    """Whether llama.cpp's keys alone give this very tokenizer."""
    try:
        document = document_of(keys)
    except FlyweightError:
        return False
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"
    return digest(text) == tokenizer.digest


def _found(tokenizer: Tokenizer, document: dict[str, Any]) -> _Tokens | None:
    if isinstance(tokenizer, ByteTokenizer):
        tokens = [*byte_characters(), "<pad>", EOT]
        types = [NORMAL] * 256 + [CONTROL] * 2
        return _Tokens({"model": "gpt2", "pre": "gpt-2", "merges": []}, tokens, types, None, [])
    if holds_pieces(document):
        return _of_pieces(document)
    model = document["model"]
    if model.get("type", "BPE") != "BPE":
        return None
    decoder = document.get("decoder") or {}
    kinds = {part.get("type") for part in decoder.get("decoders", [decoder])}
    if "ByteLevel" in kinds:
        return _byte_level(document)
    return _like_pieces(document) if model.get("byte_fallback") else None


def _of_pieces(document: dict[str, Any]) -> _Tokens | None:
    pieces = read_document(document)
    if pieces.kind != "bpe" or pieces.suffix or not pieces.escape_whitespaces:
        return None
    notes = []
    if pieces.charsmap:
        notes.append("llama.cpp does not normalise text as this tokenizer does (NFKC or the like)")
    if pieces.remove_extra_whitespaces:
        notes.append("llama.cpp does not drop repeated spaces as this tokenizer does")
    model = {
        "model": "llama",
        "pre": "default",
        "unknown_token_id": pieces.unk_id,
        "add_space_prefix": pieces.add_dummy_prefix,
    }
    return _Tokens(model, list(pieces.pieces), list(pieces.types), list(pieces.scores), notes)


def _added(document: dict[str, Any]) -> dict[int, tuple[str, int]]:
    """The tokens beside the model's own: text and type by id."""
    return {
        token["id"]: (token["content"], CONTROL if token.get("special") else USER_DEFINED)
        for token in document.get("added_tokens") or ()
    }


def _by_id(document: dict[str, Any]) -> tuple[list[str], list[int]]:
    vocab, added = document["model"]["vocab"], _added(document)
    texts = {id: (token, NORMAL) for token, id in vocab.items()} | added
    size = max(texts) + 1
    listed = [texts.get(id, (f"[PAD{id}]", UNUSED)) for id in range(size)]
    return [text for text, _ in listed], [type for _, type in listed]


def _pairs(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges, which older files write as two tokens with a space between."""
    merges = document["model"].get("merges") or ()
    split = (m.split(" ", 1) if isinstance(m, str) else m for m in merges)
    return [(left, right) for left, right in split]


def _byte_level(document: dict[str, Any]) -> _Tokens | None:
    model = document["model"]
    cut = _cut(document)
    if cut is None or model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        return None
    pairs = _pairs(document)
    if any(" " in left or " " in right for left, right in pairs):
        return None
    tokens, types = _by_id(document)
    notes = []
    if document.get("normalizer"):
        kind = document["normalizer"].get("type")
        notes.append(f"llama.cpp does not normalise text as this tokenizer does ({kind})")
    keys = {"model": "gpt2", "pre": cut, "merges": [" ".join(pair) for pair in pairs]}
    return _Tokens(keys, tokens, types, None, notes)


def _cut(document: dict[str, Any]) -> str | None:
    """llama.cpp's name for the way in which a tokenizer.json cuts words; None: it has none."""
    before = document.get("pre_tokenizer") or {}
    regexes: list[str] = []
    for part in before.get("pretokenizers", [before]):
        match part:
            case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}:
                regexes.append(regex)
            case {"type": "Digits", "individual_digits": True}:
                regexes.append(_DIGIT)
            case {"type": "ByteLevel", "add_prefix_space": False}:
                regexes += [_GPT2] if part.get("use_regex", True) else []
            case _:
                return None
    whole = bool(document["model"].get("ignore_merges"))
    for name in _NAMES:
        if CUTS[name] == tuple(regexes) and (name in WHOLE_WORDS) == whole:
            return name
    return None


def _like_pieces(document: dict[str, Any]) -> _Tokens | None:
    """A SentencePiece vocabulary that was made a tokenizer.json elsewhere: merges by rank."""
    tokens, types = _by_id(document)
    normaliser = document.get("normalizer") or {}
    steps = [part.get("type") for part in normaliser.get("normalizers", [normaliser])]
    before = document.get("pre_tokenizer") or {}
    metaspace = before.get("type") == "Metaspace"
    if set(steps) - {"Prepend", "Replace", None} or (before and not metaspace):
        return None
    prefix = "Prepend" in steps or (metaspace and before.get("prepend_scheme") != "never")
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(_pairs(document)):
        rank.setdefault(left + right, number)
    lowest = len(rank) + 1
    unknown = document["model"].get("unk_token")
    for id, token in enumerate(tokens):
        if types[id] == NORMAL and len(token) == 6 and token.startswith("<0x"):
            types[id] = BYTE
        elif token == unknown:
            types[id] = UNKNOWN
    if types.count(BYTE) != 256 or unknown not in tokens:
        return None
    model = {
        "model": "llama",
        "pre": "default",
        "unknown_token_id": tokens.index(unknown),
        "add_space_prefix": prefix,
    }
    scores = [-float(rank.get(token, lowest)) for token in tokens]
    notes = []
    if metaspace and prefix:
        notes.append("llama.cpp adds a space even to a text that begins with one")
    return _Tokens(model, tokens, types, scores, notes)
