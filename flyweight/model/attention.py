"""Attention: grouped queries, RoPE or biases, sliding windows, document boundaries; causal, or
both ways, or to an encoder's output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flyweight.model.attention_gradient import attention
from flyweight.model.cache import Memory, Slot
from flyweight.model.layers import Linear, Norm
from flyweight.model.positions import (
    alibi_slopes,
    relative_buckets,
    rope_frequencies,
    rope_tables,
    rotate,
)
from flyweight.spec.frequencies import alibi_divisor
from flyweight.spec.model import ModelSpec
from flyweight.spec.model import Norm as NormSpec


@dataclass
class Scene:
    """What every block of one forward pass shares: where queries stand, and what they may see.

    ``mask``: None (plain causal), or a bool or additive tensor broadcastable to
    (B, heads, queries, keys). ``cos`` and ``sin``: (queries, rotary_dim / 2). ``memory``: what an
    encoder read, for the blocks that attend to it. ``dropout``: the share of each branch's output
    that training drops, a tensor of one value.
    """

    mask: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None
    causal: bool = True
    memory: Memory | None = None
    dropout: Tensor | None = None


class Positions(nn.Module):
    """Builds the Scene of a forward pass; holds what positions need: constants, and the table
    ``bias`` (buckets, heads) of relative ones.
    """

    def __init__(self, spec: ModelSpec, both_ways: bool = False) -> None:
        super().__init__()
        self.both_ways = both_ways
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
        shape = (spec.position.buckets, spec.attention.heads)
        self.bias = nn.Parameter(torch.empty(shape)) if self.kind == "relative" else None

    def scene(
        self,
        queries: int,
        past: int,
        documents_BT: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
        reach: int = 0,
        prefix_B: Tensor | None = None,
    ) -> Scene:
        """The scene of ``queries`` new positions after ``past`` remembered ones.

        ``prefix_B``: of each row as many positions, from the first, see each other in both
        directions (a Prefix-LM); there is no past then.

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
        plain = documents_BT is None and self.slopes is None and self.bias is None
        plain = plain and prefix_B is None
        if plain and (self.window is None or self.window >= past + queries):
            if past == 0 or queries == 1:
                scene.causal = past == 0
                return scene
        visible = distance_TS >= 0
        if prefix_B is not None:
            inside_BT = queries_T < prefix_B[:, None]
            visible = visible | (inside_BT[:, :, None] & inside_BT[:, None, :])
        if self.window is not None:
            visible = visible & (distance_TS.abs() < self.window)
        if documents_BT is not None:
            same = documents_BT[:, past:, None] == documents_BT[:, None, :]
            visible = visible & same
        if visible.ndim == 3:
            visible = visible[:, None]
        scene.causal = False
        scene.mask = visible
        bias = None
        if self.bias is not None:
            bias = self._relative(distance_TS)
        elif self.slopes is not None:
            slopes = self.slopes / alibi_divisor(self.position, length)
            bias = -slopes[:, None, None] * distance_TS.to(torch.float32)
        if bias is not None:
            scene.mask = bias.masked_fill(~visible, float("-inf")).to(dtype)
        elif prefix_B is not None:
            # Additive, for attention takes a bool mask over as many keys as queries for causal.
            scene.mask = torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, -torch.inf)
        return scene

    def whole(self, real_BS: Tensor | None, length: int, dtype: torch.dtype) -> Scene:
        """The scene of ``length`` positions that all see each other, padding (not real) left out.

        Only relative positions know both directions.
        """
        assert self.both_ways and self.bias is not None
        places_S = torch.arange(length, device=self.bias.device)
        bias = self._relative(places_S[:, None] - places_S[None, :])
        if real_BS is not None:
            bias = bias.masked_fill(~real_BS[:, None, None, :], float("-inf"))
        return Scene(mask=bias.to(dtype), causal=False)

    def _relative(self, distance_TS: Tensor) -> Tensor:
        """The bias of every head for these distances, query minus key. (heads, T, S), float32."""
        assert self.bias is not None
        bucket_TS = relative_buckets(self.position, distance_TS, self.both_ways)
        return F.embedding(bucket_TS, self.bias).permute(2, 0, 1).float()


class Attention(nn.Module):
    """softmax(scale q kᵀ + bias) v with heads query heads on kv_heads key and value heads.

    ``qkv.weight`` stacks the rows of queries, keys and values in this order.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        attention = spec.attention
        self.heads, self.kv_heads, self.head_dim = attention.heads, spec.kv_heads, spec.head_dim
        scales = {"1/sqrt(d)": self.head_dim**-0.5, "1/d": 1 / self.head_dim, "1": 1.0}
        self.scale = scales[attention.scale]
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


class CrossAttention(Attention):
    """Attention of a decoder's positions to all of an encoder's; order plays no part in it.

    The weights are those of Attention: the query rows of ``qkv`` read the decoder's stream, the
    key and value rows the encoder's output. Keys and values are computed once for a ``slot``.
    """

    def forward(self, x_BTD: Tensor, scene: Scene, slot: Slot | None = None) -> Tensor:
        assert scene.memory is not None
        batch, length, _ = x_BTD.shape
        rows = self.heads * self.head_dim
        q = self._project(x_BTD, slice(rows))
        q = q if self.query_norm is None else self.query_norm(q)
        kept = None if slot is None else slot.source
        if kept is None:
            kv = self._project(scene.memory.hidden, slice(rows, None))
            k, v = kv.split((self.kv_heads, self.kv_heads), dim=1)
            kept = k if self.key_norm is None else self.key_norm(k), v
            if slot is not None:
                slot.source = kept
        # Additive, for attention takes a bool mask over as many keys as queries for a causal one.
        y = attention(q, *kept, scene.memory.mask, False, self.scale)
        return self.output(y.transpose(1, 2).reshape(batch, length, -1))

    def _project(self, x_BTD: Tensor, rows: slice) -> Tensor:
        """Some rows of ``qkv``, as heads. (B, rows / head_dim, T, head_dim)."""
        weight, bias = self.qkv.weight[rows].to(x_BTD.dtype), self.qkv.bias
        found = F.linear(x_BTD, weight, None if bias is None else bias[rows].to(x_BTD.dtype))
        return found.view(*x_BTD.shape[:2], -1, self.head_dim).transpose(1, 2)
