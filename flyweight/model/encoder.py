"""The encoder of an encoder-decoder: the decoder's blocks, every position seeing all others."""

from __future__ import annotations

from torch import Tensor, nn

from flyweight.model.attention import Positions
from flyweight.model.block import Block
from flyweight.model.layers import Norm
from flyweight.spec.model import ModelSpec


class Encoder(nn.Module):
    """Embedded sources (B, S, D) to what the decoder's blocks attend to, of the same shape.

    ``real_BS`` is False at padding, which is seen by no position.
    """

    def __init__(self, spec: ModelSpec, depth: int) -> None:
        super().__init__()
        self.positions = Positions(spec, both_ways=True)
        self.blocks = nn.ModuleList(Block(spec, shared=False) for _ in range(depth))
        self.norm = Norm(spec.norm, spec.width)

    def forward(self, x_BSD: Tensor, real_BS: Tensor | None = None) -> Tensor:
        scene = self.positions.whole(real_BS, x_BSD.shape[1], x_BSD.dtype)
        for block in self.blocks:
            x_BSD = block(x_BSD, scene, None)
        return self.norm(x_BSD)
