"""Predicting further tokens: a cascade of light modules (VITA-Audio's MCTP, arXiv:2505.03739)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from flyweight.model.attention import Positions, Scene
from flyweight.model.block import Block
from flyweight.model.layers import Linear, Norm
from flyweight.spec.model import ModelSpec

Embed = Callable[[Tensor], Tensor]


class AheadModule(nn.Module):
    """h_k = block_k(W_k [norm(E(x_{t+k})); norm(h_{k-1})])."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embedding_norm = Norm(spec.norm, spec.width)
        self.hidden_norm = Norm(spec.norm, spec.width)
        self.join = Linear(2 * spec.width, spec.width)
        self.block = Block(spec, False)

    def forward(self, coming: Tensor, h: Tensor, scene: Scene) -> Tensor:
        joined = torch.cat((self.embedding_norm(coming), self.hidden_norm(h)), dim=-1)
        out: Tensor = self.block(self.join(joined), scene, None)
        return out


class Ahead(nn.Module):
    """Module k reads what the one before made of position t (the first: the decoder's hidden
    state) and the token x_{t+k}, and predicts x_{t+k+1} with the decoder's own head.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.steps = nn.ModuleList(AheadModule(spec) for _ in range(spec.ahead))

    def __len__(self) -> int:
        return len(self.steps)

    def forward(
        self,
        hidden_BTD: Tensor,
        tokens_BT: Tensor,
        documents_BT: Tensor | None,
        embed: Embed,
        positions: Positions,
        last_norm: Norm,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For k = 1, 2, ...: hidden states (B, T - k, D) for the head, and which of their
        positions' tokens x_{t+k} are of the position's own document (B, T - k), bool.
        """
        h = hidden_BTD
        for k, step in enumerate(self.steps, 1):
            length = tokens_BT.shape[1] - k
            if length < 1:
                return
            documents = None if documents_BT is None else documents_BT[:, :length]
            scene = positions.scene(length, 0, documents, h.dtype, h.device)
            h = last_norm(step(embed(tokens_BT[:, k:]), h[:, :length], scene))
            same = torch.ones_like(tokens_BT[:, k:], dtype=torch.bool)
            if documents_BT is not None:
                same = documents_BT[:, k:] == documents_BT[:, :length]
            yield h, same
