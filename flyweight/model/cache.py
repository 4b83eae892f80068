"""The key-value cache of generation: one slot per block executed."""

from __future__ import annotations

import torch
from torch import Tensor


class Slot:
    """Keys and values of one use of one block. Shapes (B, kv_heads, length, head_dim)."""

    def __init__(self) -> None:
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
    """

    def __init__(self, uses: int, reach: int = 0) -> None:
        self.slots, self.reach = [Slot() for _ in range(uses)], reach
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
        return sum(
            2 * slot.keys.numel() * slot.keys.element_size()
            for slot in self.slots
            if slot.keys is not None
        )
