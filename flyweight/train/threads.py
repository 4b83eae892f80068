"""Work for the engine's kernels, shared among as many threads as PyTorch computes with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


def share(count: int, work: Callable[[int, int], T]) -> list[T]:
    """``work(first, last)`` on contiguous parts of ``range(count)``, a thread each, in order.

    ``work`` must release the interpreter's lock to gain by it.
    """
    threads = min(torch.get_num_threads(), max(1, count))
    cuts = [count * i // threads for i in range(threads + 1)]
    first, *rest = itertools.pairwise(cuts)
    others = [_pool(threads - 1).submit(work, *part) for part in rest]
    return [work(*first), *(other.result() for other in others)]


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="flyweight-kernels")
