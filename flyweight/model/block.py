"""One block: attention and feed-forward, each behind a norm, each added to the stream."""

from __future__ import annotations

from torch import Tensor, nn

from flyweight.model.attention import Attention, CrossAttention, Scene
from flyweight.model.cache import Slot
from flyweight.model.feedforward import FeedForward, FeedForwardUpdate
from flyweight.model.layers import Norm, dropped
from flyweight.spec.model import ModelSpec


class Block(nn.Module):
    """h += s·attention(norm(h)); h += s·feedforward(norm(h)), with s the residual scale.

    Parallel branches: h += s·(attention(norm(h)) + feedforward(norm(h))), with one norm.
    ``feedforward`` is None where the decoder lends a shared one; ``update`` is then this use's
    low-rank change of it, if there is one. With ``cross``, attention to an encoder's output is a
    branch of its own between the two.
    """

    def __init__(self, spec: ModelSpec, shared: bool, cross: bool = False) -> None:
        super().__init__()
        self.scale = spec.scale.residual
        self.attention_norm = Norm(spec.norm, spec.width)
        self.attention = Attention(spec)
        self.cross_attention_norm = Norm(spec.norm, spec.width) if cross else None
        self.cross_attention = CrossAttention(spec) if cross else None
        parallel = spec.branches == "parallel"
        self.feedforward_norm = None if parallel else Norm(spec.norm, spec.width)
        self.feedforward = None if shared else FeedForward(spec.feedforward, spec.width)
        rank = spec.share.lora_rank if shared else 0
        self.update = FeedForwardUpdate(spec.feedforward, spec.width, rank) if rank else None

    def forward(
        self, h: Tensor, scene: Scene, lent: FeedForward | None, slot: Slot | None = None
    ) -> Tensor:
        feedforward = self.feedforward if self.feedforward is not None else lent
        assert feedforward is not None
        x = self.attention_norm(h)
        branch = self.attention(x, scene, slot)
        if self.feedforward_norm is None:
            branch = branch + feedforward(x, self.update)
        else:
            h = self._add(h, branch, scene)
            if self.cross_attention is not None and self.cross_attention_norm is not None:
                branch = self.cross_attention(self.cross_attention_norm(h), scene, slot)
                h = self._add(h, branch, scene)
            branch = feedforward(self.feedforward_norm(h), self.update)
        return self._add(h, branch, scene)

    def _add(self, h: Tensor, branch: Tensor, scene: Scene) -> Tensor:
        if scene.dropout is not None:
            branch = dropped(branch, scene.dropout)
        return h + (branch if self.scale == 1.0 else branch * self.scale)
