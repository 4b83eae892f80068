"""Byte-level BPE vocabularies that come without a tokenizer.json: GPT-2's files, and GGUF's lists.

Such a vocabulary names the way it cuts a text into words instead of holding it; here are those
ways by GGUF's names (llama.cpp, `tokenizer.ggml.pre`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.document import BYTE_LEVEL, added_token, bpe, tokenizer_json
from flyweight.text.tokenizer import MARK, byte_characters

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Numbers of up to three digits (Llama 3, GPT-4), or of one (Qwen 2).
_LLAMA3 = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDINGS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDINGS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)
_THREE_DIGITS = "[0-9][0-9][0-9]"
# Each pattern cuts what the one before it left.
CUTS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", _THREE_DIGITS),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, _THREE_DIGITS),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe"), (_GPT2,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", _GPT2)
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), (_LLAMA3,)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), (_QWEN2,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT4O,)),
}
# A word that is a token is that token, whatever the merges make of it.
_WHOLE_WORDS = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"})


def byte_level_document(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    cut: str,
    special: Iterable[str],
    user_defined: Iterable[str] = (),
    mark: Mapping[str, Any] | None = None,
    normalizer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A tokenizer.json, parsed. ``cut`` is a key of CUTS; ``mark`` see SubwordTokenizer."""
    added = [(name, True) for name in special] + [(name, False) for name in user_defined]
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in CUTS[cut]
    ]
    model = bpe(vocab, merges, ignore_merges=cut in _WHOLE_WORDS)
    return tokenizer_json(
        {**model, MARK: dict(mark)} if mark else model,
        [added_token(*each) for each in sorted((vocab[n], n, s) for n, s in added)],
        decoder=BYTE_LEVEL,
        normalizer=dict(normalizer) if normalizer else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*splits, BYTE_LEVEL]},
    )


# Slow tokenizers of transformers whose files are a vocabulary and merges: cut, and normaliser.
_CLASSES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "GPT2Tokenizer": ("gpt-2", None),
    "CodeGenTokenizer": ("gpt-2", None),
    "Qwen2Tokenizer": ("qwen2", {"type": "NFC"}),
}


def read_vocabulary_and_merges(
    vocabulary: Path, merges: Path, tokenizer_class: str | None = None
) -> dict[str, Any]:
    """GPT-2's encoder.json and vocab.bpe (or vocab.json and merges.txt) as a tokenizer.json.

    ``tokenizer_class`` is what tokenizer_config.json says; without it they are GPT-2's. Tokens
    that neither are bytes nor come about by merging are special. Raises CorruptFileError.
    """
    plain = (tokenizer_class or "GPT2Tokenizer").removesuffix("Fast")
    if plain not in _CLASSES:
        raise FlyweightError(
            f"{vocabulary.parent} says that its tokenizer is a {tokenizer_class}, whose way to cut"
            f" words is not known ({', '.join(_CLASSES)} are); name its tokenizer.json"
        )
    cut, normalizer = _CLASSES[plain]
    vocab = _vocabulary(vocabulary)
    pairs = _merges(merges)
    for pair in pairs:
        for token in (*pair, pair[0] + pair[1]):
            if token not in vocab:
                raise CorruptFileError(
                    f"{merges}: the merge {' '.join(pair)!r} needs {token!r}, which is not in"
                    f" {vocabulary}"
                )
    made = {*byte_characters(), *(a + b for a, b in pairs)}
    special = [token for token in vocab if token not in made]
    return byte_level_document(vocab, pairs, cut, special, normalizer=normalizer)


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        vocab = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(vocab, dict) or not vocab:
        raise CorruptFileError(f"{path} is no vocabulary: a table of tokens and ids is wanted")
    ids = list(vocab.values())
    if not all(type(id) is int for id in ids) or sorted(ids) != list(range(len(ids))):
        raise CorruptFileError(f"the ids of {path} are not 0 to {len(ids) - 1}, each once")
    return vocab


def _merges(path: Path) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        if not left or not right or " " in right:
            raise CorruptFileError(f"{path}, line {number}: {line!r} is not two tokens")
        pairs.append((left, right))
    if len(set(pairs)) < len(pairs):
        raise CorruptFileError(f"{path} lists a merge twice")
    return pairs


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise FlyweightError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not UTF-8: {error}") from None
