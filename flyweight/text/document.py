"""What the tokenizer.json files written here have in common, keys in the library's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BYTE_LEVEL: dict[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}


def tokenizer_json(
    model: Mapping[str, Any],
    added_tokens: Sequence[Mapping[str, Any]],
    decoder: Mapping[str, Any],
    normalizer: Mapping[str, Any] | None = None,
    pre_tokenizer: Mapping[str, Any] | None = None,
    post_processor: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A tokenizer.json, parsed."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added_tokens),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def bpe(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """Its ``model``. ``ignore_merges``: a word that is a token is that token."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fuse_unk,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocab),
        "merges": list(merges),
    }


def added_token(id: int, content: str, special: bool = True) -> dict[str, Any]:
    """One of its ``added_tokens``, found wherever it stands in a text."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": content, **flags, "special": special}


def surrounded_by(
    front: Sequence[tuple[int, str]], behind: Sequence[tuple[int, str]] = ()
) -> dict[str, Any]:
    """A ``post_processor`` that puts special tokens, (id, content) each, around a text."""

    def specials(tokens: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": content, "type_id": 0}} for _, content in tokens]

    a, b = (
        [*specials(front), {"Sequence": {"id": name, "type_id": i}}, *specials(behind)]
        for i, name in enumerate("AB")
    )
    return {
        "type": "TemplateProcessing",
        "single": a,
        "pair": a + b,
        "special_tokens": {
            content: {"id": content, "ids": [id], "tokens": [content]}
            for id, content in (*front, *behind)
        },
    }
