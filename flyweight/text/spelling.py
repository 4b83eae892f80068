"""Tokens spelled in byte slots, for the byte-slot models (arXiv:2405.14159)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flyweight.spec.errors import ConfigurationError
from flyweight.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What a slot holds: a byte, a pad after a token's end, or <eot>, a token of its own.
PAD, EOT, SYMBOLS = 256, 257, 258


def spelling(tokenizer: Tokenizer, vocab_size: int, slots: int) -> NDArray[np.int32]:
    """Each token's bytes, then pads. (vocab_size, slots). Ids beyond the tokenizer's are empty.

    Raises ConfigurationError where a token has more bytes than there are slots.
    """
    import numpy as np

    table = np.full((vocab_size, slots), PAD, dtype=np.int32)
    long = []
    for token in range(min(tokenizer.vocab_size, vocab_size)):
        text = tokenizer.token_bytes(token)
        symbols = [EOT] if token == tokenizer.eot_id else list(text)
        if len(symbols) > slots:
            long.append(text)
            continue
        table[token, : len(symbols)] = symbols
    if long:
        raise ConfigurationError(
            f"model.input.slots = {slots}, but {len(long)} tokens of the tokenizer are"
            f" longer, {max(long, key=len)!r} among them; train it with"
            f" text.tokenizer.max_bytes = {slots}, or give more slots"
        )
    return table
