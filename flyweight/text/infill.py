"""Infilling as CodeGen2 was trained for it (arXiv:2305.02309, and its model card).

A mask stands for what is missing; behind the text, after a separator, the same mask asks for it:

    prefix <mask_1> suffix <|endoftext|> <sep> <mask_1>

The model answers with what is missing and closes it with <eom>. In its vocabulary of 51200 ids
<sep> is 50299, <eom> 50300, and <mask_N> is 51200 - N; they are found in any text, so that a text
that should not hold them is the caller's to check. A model trained here with spans on a tokenizer
that has none has them behind its tokens (`with_sentinels`).
"""

from __future__ import annotations

import json

from flyweight.spec.errors import FlyweightError
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.document import added_token
from flyweight.text.subword import SubwordTokenizer
from flyweight.text.tokenizer import MARK, Tokenizer

MASK, SEP, END_OF_MASK = "<mask_1>", "<sep>", "<eom>"


def infill_prompt(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """The ids that ask for what stands between ``prefix`` and ``suffix``.

    They go to ``generate`` in place of a text, with ``stop=[END_OF_MASK]``. Raises FlyweightError
    where the tokenizer lacks the tokens.
    """
    mask, sep = _id(tokenizer, MASK), _id(tokenizer, SEP)
    if tokenizer.eot_id is None:
        raise FlyweightError("infilling needs a tokenizer with an end-of-text token")
    before, after = tokenizer.encode(prefix), tokenizer.encode(suffix)
    return [*before, mask, *after, tokenizer.eot_id, sep, mask]


def infilled(answer: str) -> str:
    """What the model put between the two: its answer up to where it ends the mask."""
    return answer.partition(END_OF_MASK)[0]


def with_sentinels(tokenizer: Tokenizer, masks: int) -> Tokenizer:
    """``tokenizer`` with <eom>, <sep>, <mask_N> ... <mask_1> as the ids behind its own; as it is
    where it has them, or is of a kind that takes no more tokens."""
    known = len(tokenizer.encode(MASK, specials=True)) == 1
    if known or not isinstance(tokenizer, ByteTokenizer | SubwordTokenizer):
        return tokenizer
    names = [END_OF_MASK, SEP, *(f"<mask_{n}>" for n in range(masks, 0, -1))]
    added = [
        added_token(id, name, special=False) for id, name in enumerate(names, tokenizer.vocab_size)
    ]
    document = json.loads(tokenizer.to_json())
    said = {key: getattr(tokenizer, key) for key in ("bos_id", "eot_id", "pad_id", "add_bos")}
    model = {**document["model"], MARK: {**document["model"].get(MARK, {}), **said}}
    added = [*document.get("added_tokens", []), *added]
    return SubwordTokenizer({**document, "model": model, "added_tokens": added})


def _id(tokenizer: Tokenizer, token: str) -> int:
    ids = tokenizer.encode(token, specials=True)
    if len(ids) != 1:
        raise FlyweightError(
            f"this tokenizer has no token {token}; CodeGen2's has, and infilling needs it"
        )
    return ids[0]
