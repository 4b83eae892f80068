"""Infilling as CodeGen2 was trained for it (arXiv:2305.02309, and its model card).

A mask stands for what is missing; behind the text, after a separator, the same mask asks for it:

    prefix <mask_1> suffix <|endoftext|> <sep> <mask_1>

The model answers with what is missing and closes it with <eom>. In its vocabulary of 51200 ids
<sep> is 50299, <eom> 50300, and <mask_N> is 51200 - N; they are found in any text, so that a text
that should not hold them is the caller's to check.
"""

from __future__ import annotations

from flyweight.spec.errors import FlyweightError
from flyweight.text.tokenizer import Tokenizer

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


def _id(tokenizer: Tokenizer, token: str) -> int:
    ids = tokenizer.encode(token, specials=True)
    if len(ids) != 1:
        raise FlyweightError(
            f"this tokenizer has no token {token}; CodeGen2's has, and infilling needs it"
        )
    return ids[0]
