"""Bytes in, bytes out, patches between: the front and back of the tokenizer-free model.

Bytes are embedded (with n-gram and match features), pooled into patches, the decoder's core runs
once a patch, and a byte decoder predicts every next byte from its byte's features and the core's
output for the last complete patch. Nothing looks ahead: whether a patch ends at a byte depends
on that byte and those before it alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flyweight.model.feedforward import FeedForward
from flyweight.model.layers import Linear, Norm
from flyweight.spec.model import FeedForward as FeedForwardSpec
from flyweight.spec.model import ModelSpec, PatchInput

NEWLINE = 10
EOT = 257


def _letters() -> Tensor:
    """Which of 256 bytes are letters, digits, underscore, or part of a non-ASCII character."""
    table = torch.zeros(258, dtype=torch.bool)
    for byte in range(256):
        table[byte] = chr(byte).isalnum() if byte < 128 else True
    table[ord("_")] = True
    return table


class ByteBlock(nn.Module):
    """A residual feed-forward on bytes; the bytes' context comes from features and the core."""

    def __init__(self, spec: ModelSpec, patches: PatchInput) -> None:
        super().__init__()
        self.norm = Norm(spec.norm, patches.width)
        hidden = FeedForwardSpec(kind=spec.feedforward.kind, hidden=patches.hidden)
        self.feedforward = FeedForward(hidden, patches.width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.feedforward(self.norm(x))


class Patches(nn.Module):
    """Where patches end, what goes into the core, and what comes back to the bytes."""

    def __init__(self, spec: ModelSpec, patches: PatchInput) -> None:
        super().__init__()
        self.kind, self.size = patches.patch, patches.size
        self.norm = Norm(spec.norm, patches.width)
        self.front = nn.ModuleList(ByteBlock(spec, patches) for _ in range(patches.front_depth))
        self.to_core = Linear(2 * patches.width, spec.width)
        self.core_norm = Norm(spec.norm, spec.width)
        self.from_core = Linear(spec.width, patches.width)
        self.offset = nn.Parameter(torch.empty(patches.size, patches.width))
        self.decoder = nn.ModuleList(ByteBlock(spec, patches) for _ in range(patches.decoder_depth))
        self.letters: Tensor
        self.register_buffer("letters", _letters(), persistent=False)

    def cut(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a patch ends with each byte (bool), and each byte's offset in its patch. (B, T).

        Rows and documents begin with a new patch; an <eot> is a patch of its own.
        """
        index_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        eot = tokens_BT == EOT
        end = eot.clone()
        if self.kind == "word":
            letter, newline = self.letters[tokens_BT], tokens_BT == NEWLINE
            end[:, 1:] |= ~letter[:, 1:] & letter[:, :-1]
            end[:, 1:] |= newline[:, 1:] & ~newline[:, :-1]
        begins = eot
        begins[:, 1:] |= end[:, :-1]
        start_BT = torch.where(begins, index_T, torch.zeros_like(index_T)).cummax(dim=1).values
        offset_BT = (index_T - start_BT) % self.size
        return end | (offset_BT == self.size - 1), offset_BT

    def pool(
        self, features_BTE: Tensor, end_BT: Tensor, tokens_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Patch vectors for the core, and for each byte how many patches are complete after it.

        Returns (B, P, D), rows padded to the most patches of any row, and counts (B, T). A patch
        is the mean of its bytes' features beside its last byte's; bytes of a patch that the next
        document's <eot> cuts short belong to none.
        """
        batch, length, width = features_BTE.shape
        complete_BT = end_BT.cumsum(dim=1)
        patches = int(complete_BT[:, -1].max())
        # Bytes of the patch that the row does not complete go to a spare slot at the end.
        slot_BT = complete_BT - end_BT.long()
        text_BT = (tokens_BT == EOT).cumsum(dim=1)
        own_BT = text_BT == self.at_end(text_BT, end_BT, patches + 1).gather(1, slot_BT)
        slot_BT = torch.where(own_BT, slot_BT, patches)
        row = torch.arange(batch, device=end_BT.device)[:, None] * (patches + 1)
        flat = (slot_BT + row).reshape(-1)
        bytes_XE = features_BTE.reshape(-1, width)
        total = bytes_XE.new_zeros(batch * (patches + 1), width).index_add(0, flat, bytes_XE)
        ones = torch.ones_like(flat, dtype=torch.float32)
        count = torch.zeros(batch * (patches + 1), device=flat.device).index_add(0, flat, ones)
        mean = total / count.clamp(min=1).to(total.dtype)[:, None]
        ended = end_BT.reshape(-1).nonzero().squeeze(1)
        last_index = torch.zeros_like(count, dtype=torch.long)
        last_index[flat[ended]] = ended
        pooled = torch.cat((mean, bytes_XE[last_index]), dim=-1)
        pooled = pooled.view(batch, patches + 1, 2 * width)[:, :patches]
        return self.core_norm(self.to_core(pooled)), complete_BT

    def spread(self, core_BPD: Tensor, complete_BT: Tensor, before_B1D: Tensor | None) -> Tensor:
        """For each byte the core's output of the last complete patch, at byte width. (B, T, E).

        Before the first complete patch: ``before`` (the previous call's last), else zero.
        """
        out = self.from_core(self.core_norm(core_BPD))
        if before_B1D is None:
            first = out.new_zeros(out.shape[0], 1, out.shape[2])
        else:
            first = self.from_core(self.core_norm(before_B1D))
        table = torch.cat((first, out), dim=1)
        row = torch.arange(len(table), device=table.device)[:, None] * table.shape[1]
        return table.flatten(0, 1)[complete_BT + row]

    def at_end(self, values_BT: Tensor, end_BT: Tensor, patches: int) -> Tensor:
        """The value at each patch's last byte, -1 where a row has fewer patches. (B, P)."""
        table = values_BT.new_full((len(end_BT), patches), -1)
        row, column = end_BT.nonzero(as_tuple=True)
        table[row, (end_BT.cumsum(dim=1) - 1)[row, column]] = values_BT[row, column]
        return table
