"""Embedded tokens: the token's own row, plus n-gram tables and match features where described."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flyweight.model.layers import Linear
from flyweight.spec.model import ModelSpec
from flyweight.text.ngrams import match_tokens, ngram_rows


class NGramTables(nn.Module):
    """Hashed n-gram embeddings, all orders stacked in one table. (orders * rows, dim).

    A batch touches few of the rows, so the gradient is kept for those alone: ``take`` hands the
    touched rows and their gradients to the optimiser, and autograd never makes a dense one.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.ngrams is not None
        self.spec = spec.ngrams
        orders = len(self.spec.orders)
        self.table = nn.Parameter(torch.empty(orders * self.spec.rows, self.spec.dim))
        # No gradient through autograd: the optimiser asks `take` for the touched rows.
        self.table.requires_grad_(False)
        self.project = Linear(orders * self.spec.dim, spec.embedding_width)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def forward(self, rows_BTN: Tensor, dtype: torch.dtype) -> Tensor:
        looked_up = F.embedding(rows_BTN, self.table).to(dtype)
        if self.training and torch.is_grad_enabled():
            looked_up.requires_grad_()
            self._pending.append((rows_BTN, looked_up))
            if self.spec.dropout:
                looked_up = looked_up * self._known(rows_BTN)[..., None].to(dtype)
        return self.project(looked_up.flatten(-2))

    def _known(self, rows_BTN: Tensor) -> Tensor:
        """Which orders a token of training may see: all, or those below a random one. (B, T, N)"""
        batch, length, orders = rows_BTN.shape
        draw = torch.rand(batch, length, 1, device=rows_BTN.device)
        ranks = torch.tensor(sorted(range(orders), key=lambda j: self.spec.orders[j]))
        place = torch.empty(orders).scatter_(0, ranks, torch.arange(orders, dtype=torch.float32))
        # A draw below the dropout, stretched over the orders, is the first one that is hidden.
        hidden_from = draw / self.spec.dropout * orders
        return (draw >= self.spec.dropout) | (place.to(draw.device) < hidden_from.floor())

    def take(self) -> tuple[Tensor, Tensor] | None:
        """Indices (X,) and gradients (X, dim), rows repeated, since the last call; or None."""
        pending = [(rows, value.grad) for rows, value in self._pending if value.grad is not None]
        self._pending.clear()
        if not pending:
            return None
        index = torch.cat([rows.reshape(-1) for rows, _ in pending])
        grads = torch.cat([grad.reshape(-1, self.spec.dim).float() for _, grad in pending])
        return index, grads


class Embedding(nn.Module):
    """Token ids to vectors of the embedding width, with looked-up context features added."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.embedding_width
        # A model of byte slots spells its tokens instead.
        rows = 0 if spec.input.kind == "slots" else spec.vocab_size
        self.weight = nn.Parameter(torch.empty(rows, width)) if rows else None
        self.ngrams = NGramTables(spec) if spec.ngrams else None
        rows = len(spec.matches.lengths) * (spec.vocab_size + 1) if spec.matches else 0
        self.matches = nn.Parameter(torch.empty(rows, width)) if rows else None
        learned = spec.position.kind == "learned"
        self.positions = nn.Parameter(torch.empty(spec.context, spec.width)) if learned else None

    def features(
        self, tokens_BT: Tensor, documents_BT: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Table rows of the n-grams and of the matches, int64, computed outside autograd."""
        if self.ngrams is None and self.spec.matches is None:
            return None, None
        tokens = tokens_BT.cpu().numpy()
        documents = np.zeros_like(tokens) if documents_BT is None else documents_BT.cpu().numpy()
        device, rows, matched = tokens_BT.device, None, None
        if self.ngrams is not None:
            grams = self.ngrams.spec
            rows = torch.from_numpy(ngram_rows(tokens, grams.orders, grams.rows, documents))
            rows = rows.to(device)
        if self.spec.matches is not None:
            lengths, vocab = self.spec.matches.lengths, self.spec.vocab_size
            found = match_tokens(tokens, lengths, vocab, documents)
            found += np.arange(len(lengths)) * (vocab + 1)
            matched = torch.from_numpy(found).to(device)
        return rows, matched

    def forward(
        self,
        tokens_BT: Tensor,
        ngrams_BTN: Tensor | None,
        matches_BTN: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        assert self.weight is not None
        x = F.embedding(tokens_BT, self.weight).to(dtype)
        if self.ngrams is not None and ngrams_BTN is not None:
            x = x + self.ngrams(ngrams_BTN, dtype)
        if self.matches is not None and matches_BTN is not None:
            flat = matches_BTN.flatten(0, 1)
            summed = F.embedding_bag(flat, self.matches, mode="sum")
            x = x + summed.view(*tokens_BT.shape, -1).to(dtype)
        return x
