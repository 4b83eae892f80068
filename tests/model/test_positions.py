"""Rotary embeddings and linear biases against their papers' formulas and known values."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from flyweight.model.positions import (  # noqa: E402
    alibi_slopes,
    rope_frequencies,
    rope_tables,
    rotate,
)
from flyweight.spec.model import Position  # noqa: E402


def turned(x: Tensor, theta: float, layout: str, offset: int = 0) -> Tensor:
    frequencies = rope_frequencies(Position(theta=theta), x.shape[-1])
    positions = torch.arange(offset, offset + x.shape[-2])
    return rotate(x, *rope_tables(frequencies, positions), layout)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotation_is_the_papers_matrix(layout: str) -> None:
    """R x with R of 2x2 blocks of angle position * theta^(-2i/d) (arXiv:2104.09864, eq. 15)."""
    length, d, theta = 9, 8, 100.0
    x = torch.randn(2, 3, length, d)
    expected = torch.zeros_like(x)
    for p in range(length):
        for i in range(d // 2):
            a, b = (i, i + d // 2) if layout == "half" else (2 * i, 2 * i + 1)
            angle = p * theta ** (-2 * i / d)
            cos, sin = math.cos(angle), math.sin(angle)
            expected[..., p, a] = x[..., p, a] * cos - x[..., p, b] * sin
            expected[..., p, b] = x[..., p, a] * sin + x[..., p, b] * cos
    torch.testing.assert_close(turned(x, theta, layout), expected, rtol=1e-5, atol=1e-5)


def test_the_layouts_are_one_rotation_with_dimensions_in_another_order() -> None:
    x = torch.randn(2, 3, 11, 16)
    order = torch.arange(16).view(8, 2).t().reshape(-1)  # 0 2 4 ... 1 3 5 ...
    half = turned(x[..., order], 10_000.0, "half")
    assert torch.equal(turned(x, 10_000.0, "interleaved")[..., order], half)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_scores_depend_on_the_distance_alone(layout: str) -> None:
    q, k = torch.randn(1, 1, 6, 16), torch.randn(1, 1, 6, 16)
    scores = [
        turned(q, 50.0, layout, at) @ turned(k, 50.0, layout, at).transpose(2, 3)
        for at in (0, 1, 300)
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[0], scores[2], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(scores[0], q @ k.transpose(2, 3), atol=1e-2)


def test_dimensions_beyond_the_rotary_ones_stay() -> None:
    x = torch.randn(1, 2, 5, 12)
    tables = rope_tables(rope_frequencies(Position(), 8), torch.arange(5))
    out = rotate(x, *tables, "half")
    assert torch.equal(out[..., 8:], x[..., 8:])
    assert torch.equal(out[..., :8], rotate(x[..., :8], *tables, "half"))


# The slopes as the paper's own code computes them (12 heads: those of 8, then of 16's odd places).
SLOPES = {
    8: [2.0**-n for n in range(1, 9)],
    12: [2.0**-n for n in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5],
    32: [2.0 ** (-n / 4) for n in range(1, 33)],
    1: [2.0**-8],
}


@pytest.mark.parametrize("heads", sorted(SLOPES))
def test_alibi_slopes_are_the_known_ones(heads: int) -> None:
    assert alibi_slopes(heads).tolist() == pytest.approx(SLOPES[heads])


@pytest.mark.parametrize("heads", range(1, 41))
def test_alibi_slopes_are_distinct_and_below_one(heads: int) -> None:
    slopes = alibi_slopes(heads).tolist()
    assert len(set(slopes)) == heads
    assert all(0 < slope < 1 for slope in slopes)
