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
# Mistral's, without English endings, and numbers of one digit.
_TEKKEN = _GPT4O.replace(f"{_ENDINGS}?", "").replace("{1,3}", "")
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
# DeepSeek's: the letters with a case that its makers listed, and what it calls signs and Chinese.
_CASED = """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F
386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD
1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45
1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4
1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115
2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184
2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787
A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3
104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
_LETTERS = "".join(
    "-".join(chr(int(end, 16)) for end in each.split("-")) for each in _CASED.split()
)
_SIGNS, _HAN = "!-/:-~！-／：-～‘-‟\u3000-。", "[一-龥\u0800-一가-\ud7ff]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_REST}"
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
    "tekken": (_TEKKEN,),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), (_BLOOM,)),
    "viking": (_BLOOM, r"\p{N}"),
    "deepseek-llm": (r"[\r\n]", rf"\s?[{_LETTERS}]+", rf"\s?[{_SIGNS}]+", r"\s+$", _HAN, r"\p{N}+"),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}"),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense"), (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)
    ),
}
# A word that is a token is that token, whatever the merges make of it.
WHOLE_WORDS = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"})


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
    model = bpe(vocab, merges, ignore_merges=cut in WHOLE_WORDS)
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
