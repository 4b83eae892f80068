"""Choosing the next token from logits: greedy, temperature, top-k, top-p, min-p."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def choose(
    logits_V: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
    min_p: float | None = None,
) -> int:
    """One token id, as flyweight.text.talk.Sampling describes."""
    if temperature == 0:
        return int(logits_V.argmax())
    # Whatever the temperature, no number overflows, and none is divided by it.
    logits_V = (logits_V - logits_V.max()) / min(max(temperature, 1e-30), 1e30)
    if top_k is not None and top_k < len(logits_V):
        lowest = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < lowest, float("-inf"))
    probs, order = logits_V.softmax(dim=-1).sort(descending=True, stable=True)
    if top_p is not None and top_p < 1:
        # Keep the smallest set whose mass reaches top_p, the first token always.
        probs = probs.masked_fill(probs.cumsum(0) - probs >= top_p, 0.0)
    if min_p is not None:
        probs = probs.masked_fill(probs < min_p * probs[0], 0.0)
    return int(order[torch.multinomial(probs, 1, generator=generator)])


def penalise(logits_V: Tensor, tokens: Sequence[int], penalty: float) -> None:
    """Make what was said already less likely, in place (arXiv:1909.05858)."""
    said = torch.tensor(sorted(set(tokens)))
    found = logits_V[said]
    logits_V[said] = torch.where(found > 0, found / penalty, found * penalty)


def likeliest(log_probs_V: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """The ``count`` likeliest ids with their log probabilities, the likeliest first."""
    values, ids = log_probs_V.sort(descending=True, stable=True)
    return tuple(zip(ids[:count].tolist(), values[:count].tolist(), strict=True))
