"""A tokenizer's tokens spelled in byte slots (Super Tiny Language Models, arXiv:2405.14159).

The front reads the bytes of one token, both ways, and pools them into one vector; the back
spells out all bytes of the next token at once. Unlike the published code, pads are left out of
the mean, the first pad (the token's end) is scored and those after it are not, and <eot> is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flyweight.model.attention import Attention, Scene
from flyweight.model.block import Block
from flyweight.model.feedforward import FeedForward
from flyweight.model.layers import Linear, Norm
from flyweight.spec.model import ModelSpec, SlotInput
from flyweight.text.spelling import PAD, SYMBOLS, spelling
from flyweight.text.tokenizer import Tokenizer


def _inside(spec: ModelSpec, slots: SlotInput, width: int) -> ModelSpec:
    """The spec of a block within a token, at ``width``."""
    return ModelSpec.parse(
        {
            "vocab_size": SYMBOLS,
            "width": width,
            "depth": 1,
            "context": slots.slots,
            "norm": spec.norm.values(),
            "position": {"kind": "none"},
            "attention": {"heads": slots.heads},
            "feedforward": {"kind": "gelu", "hidden": slots.hidden * width // slots.width},
        }
    )


class Widening(nn.Module):
    """h = x + attention(norm(x)); feedforward(norm(h)), which leads to another width."""

    def __init__(self, spec: ModelSpec, output: int) -> None:
        super().__init__()
        self.attention_norm = Norm(spec.norm, spec.width)
        self.attention = Attention(spec)
        self.feedforward_norm = Norm(spec.norm, spec.width)
        self.feedforward = FeedForward(spec.feedforward, spec.width, output)

    def forward(self, x: Tensor, scene: Scene, lent: None = None) -> Tensor:
        h = x + self.attention(self.attention_norm(x), scene)
        return self.feedforward(self.feedforward_norm(h))


class Slots(nn.Module):
    """Front and back of the byte-slot model; ``spelling`` (V, S) holds each token's bytes."""

    def __init__(self, spec: ModelSpec, slots: SlotInput) -> None:
        super().__init__()
        inner = _inside(spec, slots, slots.width)
        self.count, self.width = slots.slots, slots.width
        self.embedding = nn.Parameter(torch.empty(SYMBOLS, slots.width))
        self.front_offset = nn.Parameter(torch.empty(slots.slots, slots.width))
        # The paper's front ends at the core's width; one that keeps its own is led there.
        self.to_core: Linear | None = None
        if slots.front_widths:
            inputs = (slots.width, *slots.front_widths)
            steps = zip(inputs, slots.front_widths, strict=False)
            self.front = nn.ModuleList(Widening(_inside(spec, slots, i), o) for i, o in steps)
        else:
            self.front = nn.ModuleList(Block(inner, False) for _ in range(slots.front_depth))
            self.to_core = Linear(slots.width, spec.width)
        self.from_core = Linear(spec.width, slots.slots * slots.width)
        self.back_offset = nn.Parameter(torch.empty(slots.slots, slots.width))
        self.back = nn.ModuleList(Block(inner, False) for _ in range(slots.decoder_depth))
        self.back_norm = Norm(spec.norm, slots.width)
        self.head = Linear(slots.width, SYMBOLS)
        self.spelling: Tensor
        empty = torch.full((spec.vocab_size, slots.slots), PAD, dtype=torch.int32)
        # The tokenizer's, not the model's: checkpoints and model folders have both.
        self.register_buffer("spelling", empty, persistent=False)

    def spell(self, tokenizer: Tokenizer) -> None:
        """Fill ``spelling`` from a tokenizer; as ``flyweight.text.spelling`` does."""
        found = spelling(tokenizer, *self.spelling.shape)
        self.spelling.copy_(torch.from_numpy(found))

    def embed(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """One vector per token, the mean over its bytes after the front. (B, T, D)."""
        symbols_XS = self.spelling[tokens_BT.reshape(-1)].long()
        real_XS = symbols_XS != PAD
        # A token without bytes (a pad) still needs something to attend to and to pool.
        real_XS[:, 0] = True
        x = (F.embedding(symbols_XS, self.embedding) + self.front_offset).to(dtype)
        scene = Scene(mask=real_XS[:, None, None, :], causal=False)
        for block in self.front:
            x = block(x, scene, None)
        weight = real_XS.to(x.dtype)[:, :, None]
        pooled = (x * weight).sum(dim=1) / weight.sum(dim=1)
        pooled = pooled if self.to_core is None else self.to_core(pooled)
        return pooled.view(*tokens_BT.shape, -1)

    def symbol_logits(self, hidden_XD: Tensor) -> Tensor:
        """Logits of every slot's symbol, all slots at once. (X, S, 258), float32."""
        x = self.from_core(hidden_XD).view(-1, self.count, self.width)
        x = x + self.back_offset.to(x.dtype)
        scene = Scene(causal=False)
        for block in self.back:
            x = block(x, scene, None)
        return self.head(self.back_norm(x)).float()

    def loss(self, hidden_XD: Tensor, targets_X: Tensor) -> Tensor:
        """Sum of -ln p over the bytes of each target and its end, in nats."""
        symbols_XS = self.spelling[targets_X].long()
        pad_XS = symbols_XS == PAD
        after_end_XS = pad_XS & (pad_XS.cumsum(dim=1) > 1)
        labels = symbols_XS.masked_fill(after_end_XS, -100)
        logits = self.symbol_logits(hidden_XD)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")

    def token_logits(self, hidden_XD: Tensor) -> Tensor:
        """log p of each token's spelling, end included; softmax makes it a distribution. (X, V)."""
        log_probs_XSC = self.symbol_logits(hidden_XD).log_softmax(dim=-1)
        pad_VS = self.spelling == PAD
        after_end_VS = pad_VS & (pad_VS.cumsum(dim=1) > 1)
        total = log_probs_XSC.new_zeros(len(hidden_XD), len(self.spelling))
        for slot in range(self.count):
            scored = log_probs_XSC[:, slot][:, self.spelling[:, slot].long()]
            total += scored.masked_fill(after_end_VS[:, slot], 0.0)
        return total
