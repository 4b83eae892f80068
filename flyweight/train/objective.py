"""What training makes smaller: the next-token loss, and what an objective adds to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flyweight.data.batches import Batch
from flyweight.model.decoder import Decoder
from flyweight.spec.model import SlotInput
from flyweight.spec.run import Objective
from flyweight.train.cross_entropy import LinearCrossEntropy, Terms


@dataclass(frozen=True)
class Part:
    """Some rows of a batch on the device; None where there is nothing to tell."""

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None = None
    prefix_B: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, rows: slice, device: str) -> Part:
        def on_device(values: object) -> Tensor:
            tensor = torch.as_tensor(values)
            if device == "cuda":
                # From pinned memory, the copy goes on beside the card's work.
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor.to(device)

        documents, prefix = batch.documents_BT[rows], None
        if batch.prefix_B is not None and batch.prefix_B[rows].any():
            prefix = on_device(batch.prefix_B[rows])
        return cls(
            on_device(batch.tokens_BT[rows]),
            on_device(batch.targets_BT[rows]),
            on_device(documents) if documents.any() else None,
            prefix,
        )


def training_loss(
    model: Decoder, part: Part, objective: Objective, dtype: torch.dtype, divisor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What to make smaller, and the next-token loss in it, for the record: sums over ``divisor``.

    Each in nats, float32; the second has no gradient.
    """
    hidden = model.hidden(part.tokens_BT, part.documents_BT, dtype=dtype, prefix_B=part.prefix_B)
    terms = Terms(model.spec.scale.logits, divisor, objective.label_smoothing, objective.z_loss)
    loss, plain = _head_loss(model, hidden, part.targets_BT, terms)
    if model.ahead is not None and objective.ahead:
        weight = objective.ahead / len(model.ahead)
        cascade = model.further(hidden, part.tokens_BT, part.documents_BT)
        for k, (further, same_BT) in enumerate(cascade, 1):
            targets_BT = part.targets_BT[:, k:].masked_fill(~same_BT, -1)
            loss = loss + weight * _head_loss(model, further, targets_BT, terms)[0]
    spelled = reconstruction_loss(model, part.tokens_BT, dtype)
    return (loss if spelled is None else loss + spelled / divisor), plain


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
    return _head_loss(model, hidden, targets_BT, Terms(model.spec.scale.logits, divisor))[0]


def _head_loss(
    model: Decoder, hidden: Tensor, targets_BT: Tensor, terms: Terms
) -> tuple[Tensor, Tensor]:
    """The loss of the head's logits of ``hidden`` (B, T, E), and its plain cross-entropy."""
    hidden_XD, targets_X = hidden.flatten(0, 1), targets_BT.flatten()
    if model.slots is not None:
        loss = model.slots.loss(hidden_XD, targets_X) / terms.divisor
        return loss, loss.detach()
    head: Tensor | None = model.embedding.weight if model.head is None else model.head.weight
    assert head is not None
    if model.head is not None and model.head.bias is not None:
        # h Wᵀ + b is (h, 1) (W, b)ᵀ.
        head = torch.cat((head, model.head.bias[:, None]), dim=1)
        hidden_XD = torch.cat((hidden_XD, hidden_XD.new_ones(len(hidden_XD), 1)), dim=1)
    loss, plain = LinearCrossEntropy.apply(hidden_XD, head, targets_X, terms)
    return loss, plain


def reconstruction_loss(model: Decoder, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The byte-slot model's auxiliary loss: each token spelled from its own pooled vector.

    Weighted by ``input.reconstruction`` (arXiv:2405.14159); None for other models.
    """
    spec = model.spec.input
    if model.slots is None or not isinstance(spec, SlotInput) or spec.reconstruction == 0:
        return None
    vectors = model.slots.embed(tokens_BT, dtype).flatten(0, 1)
    return spec.reconstruction * model.slots.loss(vectors, tokens_BT.flatten())
