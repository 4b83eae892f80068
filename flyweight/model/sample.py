"""Choosing the next token from logits: greedy, temperature, top-k, top-p."""

from __future__ import annotations

import torch
from torch import Tensor


def choose(
    logits_V: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> int:
    """One token id. Temperature 0 is greedy; top_p is nucleus sampling (arXiv:1904.09751)."""
    if temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V / temperature
    if top_k is not None and top_k < len(logits_V):
        lowest = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < lowest, float("-inf"))
    probs, order = logits_V.softmax(dim=-1).sort(descending=True, stable=True)
    if top_p is not None and top_p < 1:
        # Keep the smallest set whose mass reaches top_p, the first token always.
        probs = probs.masked_fill(probs.cumsum(0) - probs >= top_p, 0.0)
    return int(order[torch.multinomial(probs, 1, generator=generator)])
