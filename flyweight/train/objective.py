"""What training makes smaller: the next-token loss, and byte slots' reconstruction."""

from __future__ import annotations

import torch
from torch import Tensor

from flyweight.model.decoder import Decoder
from flyweight.spec.model import SlotInput
from flyweight.train.cross_entropy import LinearCrossEntropy, Terms


def next_token_loss(
    model: Decoder,
    tokens_BT: Tensor,
    targets_BT: Tensor,
    documents_BT: Tensor | None,
    dtype: torch.dtype,
    divisor: float = 1.0,
) -> Tensor:
    """Sum over all positions of -ln p(target), over ``divisor``, float32, in nats.

    For byte slots: of the target's bytes and its end, each slot alone (an upper bound).
    """
    hidden = model.hidden(tokens_BT, documents_BT, dtype=dtype)
    if model.slots is not None:
        return model.slots.loss(hidden.flatten(0, 1), targets_BT.flatten()) / divisor
    head: Tensor | None = model.embedding.weight if model.head is None else model.head.weight
    assert head is not None
    hidden_XD = hidden.flatten(0, 1)
    if model.head is not None and model.head.bias is not None:
        # h Wᵀ + b is (h, 1) (W, b)ᵀ.
        head = torch.cat((head, model.head.bias[:, None]), dim=1)
        hidden_XD = torch.cat((hidden_XD, hidden_XD.new_ones(len(hidden_XD), 1)), dim=1)
    terms = Terms(model.spec.scale.logits, divisor)
    return LinearCrossEntropy.apply(hidden_XD, head, targets_BT.flatten(), terms)


def reconstruction_loss(model: Decoder, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The byte-slot model's auxiliary loss: each token spelled from its own pooled vector.

    Weighted by ``input.reconstruction`` (arXiv:2405.14159); None for other models.
    """
    spec = model.spec.input
    if model.slots is None or not isinstance(spec, SlotInput) or spec.reconstruction == 0:
        return None
    vectors = model.slots.embed(tokens_BT, dtype).flatten(0, 1)
    return spec.reconstruction * model.slots.loss(vectors, tokens_BT.flatten())
