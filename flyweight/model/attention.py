"""Causal attention: grouped queries, RoPE or ALiBi, sliding windows, document boundaries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flyweight.model.attention_gradient import attention
from flyweight.model.cache import Slot
from flyweight.model.layers import Linear, Norm
from flyweight.model.positions import (
    alibi_divisor,
    alibi_slopes,
    rope_frequencies,
    rope_tables,
    rotate,
)
from flyweight.spec.model import ModelSpec
from flyweight.spec.model import Norm as NormSpec


@dataclass
class Scene:
    """What every block of one forward pass shares: where queries stand, and what they may see.

    ``mask``: None (plain causal), or a bool or additive tensor broadcastable to
    (B, heads, queries, keys). ``cos`` and ``sin``: (queries, rotary_dim / 2).
    """

    mask: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None
    causal: bool = True


class Positions(nn.Module):
    """Builds the Scene of a forward pass; holds the few constants that positions need."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.kind, self.window = spec.position.kind, spec.attention.window
        self.position, self.rotary_dim = spec.position, spec.rotary_dim
        self.rope_gain = spec.rope_gain
        self.frequencies: Tensor | None
        self.slopes: Tensor | None
        rope = self.kind == "rope"
        self.register_buffer(
            "frequencies",
            rope_frequencies(spec.position, spec.rotary_dim) if rope else None,
            persistent=False,
        )
        self.register_buffer(
            "slopes",
            alibi_slopes(spec.attention.heads) if self.kind == "alibi" else None,
            persistent=False,
        )

    def scene(
        self,
        queries: int,
        past: int,
        documents_BT: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
        reach: int = 0,
    ) -> Scene:
        """The scene of ``queries`` new positions after ``past`` remembered ones.

        ``reach``: the length that the sequence is known to come to, where scaling depends on it.

        ``documents_BT`` (B, past + queries): which document each position belongs to; a position
        sees its own document alone. None: one document, and PyTorch's own causal mask serves.
        """
        keys_S = torch.arange(past + queries, device=device)
        queries_T = keys_S[past:]
        length = max(past + queries, reach)
        scene = Scene()
        if self.frequencies is not None:
            frequencies = self.frequencies
            if self.position.original is not None:
                frequencies = rope_frequencies(self.position, self.rotary_dim, length)
                frequencies = frequencies.to(device)
            scene.cos, scene.sin = rope_tables(frequencies, queries_T)
            if self.rope_gain != 1.0:
                scene.cos, scene.sin = scene.cos * self.rope_gain, scene.sin * self.rope_gain
        distance_TS = queries_T[:, None] - keys_S[None, :]
        plain = documents_BT is None and self.slopes is None
        if plain and (self.window is None or self.window >= past + queries):
            if past == 0 or queries == 1:
                scene.causal = past == 0
                return scene
        visible = distance_TS >= 0
        if self.window is not None:
            visible = visible & (distance_TS < self.window)
        if documents_BT is not None:
            same = documents_BT[:, past:, None] == documents_BT[:, None, :]
            visible = (visible & same)[:, None]
        scene.causal = False
        if self.slopes is None:
            scene.mask = visible
        else:
            slopes = self.slopes / alibi_divisor(self.position, length)
            bias = -slopes[:, None, None] * distance_TS.to(torch.float32)
            scene.mask = bias.masked_fill(~visible, float("-inf")).to(dtype)
        return scene


class Attention(nn.Module):
    """softmax(scale q kᵀ + bias) v with heads query heads on kv_heads key and value heads.

    ``qkv.weight`` stacks the rows of queries, keys and values in this order.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        attention = spec.attention
        self.heads, self.kv_heads, self.head_dim = attention.heads, spec.kv_heads, spec.head_dim
        self.scale = self.head_dim**-0.5 if attention.scale == "1/sqrt(d)" else 1 / self.head_dim
        self.layout = spec.position.layout
        gained = NormSpec(kind="rms", eps=spec.norm.eps, gain=attention.qk_gain)
        self.query_norm = Norm(gained, self.head_dim) if attention.qk_norm else None
        self.key_norm = Norm(gained, self.head_dim) if attention.qk_norm else None
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = Linear(spec.width, rows, attention.bias)
        output_bias = attention.bias if attention.output_bias is None else attention.output_bias
        self.output = Linear(self.heads * self.head_dim, spec.width, output_bias)

    def forward(self, x_BTD: Tensor, scene: Scene, slot: Slot | None = None) -> Tensor:
        batch, length, _ = x_BTD.shape
        qkv = self.qkv(x_BTD).view(batch, length, -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if scene.cos is not None and scene.sin is not None:
            q = rotate(q, scene.cos, scene.sin, self.layout)
            k = rotate(k, scene.cos, scene.sin, self.layout)
        if slot is not None:
            k, v = slot.extend(k, v)
        y = attention(q, k, v, scene.mask, scene.causal, self.scale)
        return self.output(y.transpose(1, 2).reshape(batch, length, -1))
