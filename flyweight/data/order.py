"""A shuffle without a shuffled list: the place of item i is computed from a key.

A Feistel network over the least power of four that holds n, walked along its cycles until it
lands below n, permutes range(n) (Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"). It needs no memory and no state, and any part of it can be had alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
_Words = npt.NDArray[np.uint64]
# (values, bits of a half, round keys) to their images
_Network = Callable[[_Words, int, _Words], _Words]


def keys(seed: int, epoch: int, purpose: str, count: int) -> npt.NDArray[np.uint64]:
    """(count,) 64-bit keys, a stable function of the arguments (shake-128)."""
    data = hashlib.shake_128(f"flyweight order 1: {purpose} {seed} {epoch}".encode())
    return np.frombuffer(data.digest(8 * count), dtype="<u8").astype(np.uint64)


def permute(index: npt.ArrayLike, n: int, seed: int, epoch: int = 0) -> npt.NDArray[np.int64]:
    """The images of ``index`` (integers in [0, n), any shape) under the permutation of range(n)
    that ``seed`` and ``epoch`` name."""
    return _walk(_feistel, index, n, seed, epoch)


def unpermute(image: npt.ArrayLike, n: int, seed: int, epoch: int = 0) -> npt.NDArray[np.int64]:
    """The inverse of `permute`: the integers whose images these are."""
    return _walk(_unfeistel, image, n, seed, epoch)


def _walk(
    network: _Network, values: npt.ArrayLike, n: int, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """``network`` on each value, again and again until it is in [0, n)."""
    whole = np.atleast_1d(np.asarray(values, dtype=np.int64))
    assert n > 0 and (whole.size == 0 or (whole.min() >= 0 and whole.max() < n))
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    round_keys = keys(seed, epoch, "permute", _ROUNDS)
    x = whole.astype(np.uint64)
    outside = np.ones(x.shape, dtype=bool)
    # The domain is less than four times n, so a value leaves [0, n) a few times at most on average.
    while outside.any():
        x[outside] = network(x[outside], half, round_keys)
        outside = x >= np.uint64(n)
    return x.astype(np.int64).reshape(np.shape(values))


def _feistel(
    x: npt.NDArray[np.uint64], half: int, round_keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """A bijection of [0, 4**half): halves swap, one masked by a keyed hash of the other."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> shift, x & mask
    for key in round_keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _unfeistel(
    x: npt.NDArray[np.uint64], half: int, round_keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """The inverse of `_feistel`."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> shift, x & mask
    for key in round_keys[::-1]:
        left, right = right ^ (_mix(left + key) & mask), left
    return (left << shift) | right


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
