"""The permutation is one, and stays the one that it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.order import keys, permute

SEEDS = st.integers(0, 2**63 - 1)


@given(n=st.integers(1, 5000), seed=SEEDS, epoch=st.integers(0, 1000))
def test_every_item_comes_once(n: int, seed: int, epoch: int) -> None:
    places = permute(np.arange(n), n, seed, epoch)
    assert np.array_equal(np.sort(places), np.arange(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 65536, 65537])
def test_sizes_about_the_powers_of_four(n: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, 7)), np.arange(n))


@given(n=st.integers(1, 2**40), seed=SEEDS, data=st.data())
def test_any_part_can_be_had_alone(n: int, seed: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8)))
    together = permute(index, n, seed, 3)
    assert together.tolist() == [int(permute(i, n, seed, 3)) for i in index.tolist()]
    assert (together >= 0).all()
    assert (together < n).all()


def test_the_order_is_what_it_was() -> None:
    """A run resumed tomorrow must see the same batches."""
    assert permute(np.arange(10), 10, 0, 0).tolist() == [8, 7, 9, 4, 1, 6, 3, 5, 2, 0]
    assert permute(np.arange(5), 10**12, 123, 4).tolist() == [
        621181061406,
        845669125576,
        876574522016,
        304545508533,
        747158448476,
    ]
    assert keys(0, 0, "offset", 2).tolist() == [8329053592113697271, 7248817389380976051]


def test_seeds_and_epochs_differ_and_nothing_stays_near() -> None:
    n = 4096
    first, second, third = (permute(np.arange(n), n, *key) for key in ((0, 0), (0, 1), (1, 0)))
    for other in (second, third):
        # Two random permutations share one place on average.
        assert (first == other).sum() < 12
    # Neighbours are no nearer than chance has them: mean distance n / 3.
    assert np.abs(np.diff(first)).mean() == pytest.approx(n / 3, rel=0.05)
    assert abs(np.corrcoef(np.arange(n), first)[0, 1]) < 0.06
