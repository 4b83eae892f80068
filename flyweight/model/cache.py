"""The key-value cache of generation: one slot per block executed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Memory:
    """What an encoder made of its sources: ``hidden`` (B, S, D), and in a batch of unequal lengths
    a ``mask`` (B, 1, 1, S), 0 for a position and -inf for padding.
    """

    hidden: Tensor
    mask: Tensor | None = None


class Slot:
    """Keys and values of one use of one block. Shapes (B, kv_heads, length, head_dim).

    ``source``: those of an encoder's output, computed once.
    """

    def __init__(self) -> None:
        self.source: tuple[Tensor, Tensor] | None = None
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.length = 0

    def extend(self, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Append and return all keys and values so far. Storage doubles when it is full."""
        needed = self.length + k_BHTD.shape[2]
        if self.keys is None or self.values is None or needed > self.keys.shape[2]:
            self.keys = _grown(self.keys, k_BHTD, needed)
            self.values = _grown(self.values, v_BHTD, needed)
        self.keys[:, :, self.length : needed] = k_BHTD
        self.values[:, :, self.length : needed] = v_BHTD
        self.length = needed
        return self.keys[:, :, :needed], self.values[:, :, :needed]


def _grown(old: Tensor | None, like: Tensor, needed: int) -> Tensor:
    batch, heads, _, dim = like.shape
    new = like.new_empty(batch, heads, max(64, 2 * needed), dim)
    if old is not None:
        new[:, :, : old.shape[2]] = old
    return new


class Cache:
    """What decoding one sequence remembers: a slot per use of a block, and the patches' state.

    ``reach``: the length that the sequence will come to, where it is known (see ``new_cache``).
    ``memory``: the source that an encoder-decoder answers.
    """

    def __init__(self, uses: int, reach: int = 0, memory: Memory | None = None) -> None:
        self.slots, self.reach, self.memory = [Slot() for _ in range(uses)], reach, memory
        # Byte features of the patch that is not complete yet, and the core's last output.
        self.open_patch_1ND: Tensor | None = None
        self.core_output_11D: Tensor | None = None
        # Every token so far: n-gram and match features and patch ends depend on them.
        self.tokens: list[int] = []

    def forget(self) -> None:
        """Back to nothing remembered."""
        self.slots, self.tokens = [Slot() for _ in self.slots], []
        self.open_patch_1ND = self.core_output_11D = None

    @property
    def length(self) -> int:
        """Positions that attention remembers."""
        return self.slots[0].length

    @torch.no_grad()
    def bytes(self) -> int:
        """Memory of the stored keys and values."""
        stored = [slot.keys for slot in self.slots if slot.keys is not None]
        stored += [slot.source[0] for slot in self.slots if slot.source is not None]
        return sum(2 * keys.numel() * keys.element_size() for keys in stored)
