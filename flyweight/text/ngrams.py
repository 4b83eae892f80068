"""Looked-up context features of a token sequence: hashed n-gram rows and earlier matches.

Pure numpy, so that the PyTorch model and the kernels' runtime share one definition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_MULTIPLIER = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def positions_in_document(documents_BT: NDArray[np.integer]) -> Ints:
    """How many tokens of its own document precede each token within the row. Shape (B, T)."""
    index = np.arange(documents_BT.shape[1], dtype=np.int64)
    starts = np.ones(documents_BT.shape, dtype=bool)
    starts[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)


def _suffix_hashes(
    tokens_BT: Ints, position_BT: Ints, lengths: Sequence[int]
) -> dict[int, NDArray[np.uint64]]:
    """Hash of the last n tokens for each n of ``lengths``; tokens before the document count as 0.

    h_n(i) = mix(n + sum over k < n of (x[i-k] + 1) * M^(k+1)), modulo 2^64.
    """
    values = tokens_BT.astype(np.uint64) + np.uint64(1)
    total = np.zeros(values.shape, np.uint64)
    power, hashes = 1, {}
    for k in range(max(lengths)):
        power = power * _MULTIPLIER & _MASK
        shifted = values if k == 0 else np.zeros_like(values)
        if k:
            shifted[:, k:] = values[:, :-k] * (position_BT[:, k:] >= k)
        total = total + shifted * np.uint64(power)
        if k + 1 in lengths:
            hashes[k + 1] = _mix(total + np.uint64(k + 1))
    return hashes


def ngram_rows(
    tokens_BT: Ints, orders: Sequence[int], rows: int, documents_BT: NDArray[np.integer]
) -> Ints:
    """The table row of each order's n-gram ending at each token. Shape (B, T, orders).

    Order number j has its own ``rows`` rows, at ``j * rows`` in one stacked table. An n-gram
    does not reach into the document before.
    """
    position_BT = positions_in_document(documents_BT)
    hashes = _suffix_hashes(tokens_BT, position_BT, orders)
    columns = [
        (hashes[n] % np.uint64(rows)).astype(np.int64) + j * rows for j, n in enumerate(orders)
    ]
    return np.stack(columns, axis=-1)


def match_tokens(
    tokens_BT: Ints, lengths: Sequence[int], none: int, documents_BT: NDArray[np.integer]
) -> Ints:
    """What followed the last time, per length. Shape (B, T, lengths).

    For length m at position i: the token after the most recent earlier position whose last m
    tokens equal the m tokens up to i, all within i's document and row; ``none`` where there is
    no such position. (Equality is that of 48-bit hashes.)
    """
    rows, width = tokens_BT.shape
    if width > 1 << 16:
        raise ValueError(f"rows of {width} tokens are longer than 65536")
    position_BT = positions_in_document(documents_BT)
    hashes = _suffix_hashes(tokens_BT, position_BT, lengths)
    salt = _mix(documents_BT.astype(np.uint64) + np.uint64(1))
    row = np.arange(rows)[:, None]
    found = np.full((rows, width, len(lengths)), none, dtype=np.int64)
    low = np.uint64(0xFFFF)
    for j, m in enumerate(lengths):
        # Sorted by (hash, position), equal hashes stand side by side in order of position.
        keys = (hashes[m] ^ salt) & ~low | np.arange(width, dtype=np.uint64)
        keys.sort(axis=1)
        position = (keys & low).astype(np.int64)
        same = (keys[:, 1:] ^ keys[:, :-1]) <= low
        previous = np.full((rows, width), -1, dtype=np.int64)
        previous[row, position[:, 1:]] = np.where(same, position[:, :-1], -1)
        usable = (previous >= 0) & (position_BT >= m - 1)
        # The earlier occurrence must lie whole inside the document.
        usable &= np.take_along_axis(position_BT, np.maximum(previous, 0), axis=1) >= m - 1
        after = np.take_along_axis(tokens_BT, np.clip(previous + 1, 0, width - 1), axis=1)
        found[:, :, j] = np.where(usable, after, none)
    return found
