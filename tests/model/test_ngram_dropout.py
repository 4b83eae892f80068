"""Hiding the longer n-grams of some of training's tokens."""

from __future__ import annotations

import pytest
import torch

from flyweight.model.features import NGramTables
from flyweight.spec.model import ModelSpec


def tables(dropout: float, orders: tuple[int, ...] = (2, 5, 3)) -> NGramTables:
    spec = ModelSpec.parse(
        {
            "vocab_size": 258,
            "width": 8,
            "depth": 1,
            "context": 64,
            "attention": {"heads": 1},
            "feedforward": {"hidden": 8},
            "ngrams": {"orders": list(orders), "rows": 16, "dim": 4, "dropout": dropout},
        }
    )
    made = NGramTables(spec)
    torch.nn.init.normal_(made.table)
    torch.nn.init.normal_(made.project.weight)
    return made


@pytest.mark.parametrize("dropout", [0.25, 0.75])
def test_a_token_loses_an_order_and_all_longer_ones(dropout: float) -> None:
    made = tables(dropout)
    torch.manual_seed(0)
    known = made._known(torch.zeros(40, 1000, 3, dtype=torch.int64))
    by_order = known[..., torch.tensor([0, 2, 1])].flatten(0, 1).int()  # orders 2, 3, 5
    # A longer order is never seen where a shorter one is not.
    assert bool((by_order[:, :-1] >= by_order[:, 1:]).all())
    # Each of the four cases in its share, within five standard deviations of 40,000 draws.
    shares = [(by_order.sum(1) == n).float().mean().item() for n in range(4)]
    wanted = [dropout / 3] * 3 + [1 - dropout]
    assert shares == pytest.approx(wanted, abs=5 * 0.5 / 200)


def test_what_is_hidden_has_no_gradient_and_what_is_seen_has_all_of_it() -> None:
    made = tables(0.6).train()
    rows = torch.arange(3)[None, None].expand(4, 50, 3) * 16
    torch.manual_seed(7)
    out = made(rows, torch.float32)
    torch.manual_seed(7)
    known = made._known(rows)
    plain = tables(0.0).train()
    plain.load_state_dict(made.state_dict())
    masked = plain.table[rows] * known[..., None]
    assert torch.allclose(out, plain.project(masked.flatten(-2)))
    out.sum().backward()
    taken = made.take()
    assert taken is not None
    index, grads = taken
    assert torch.equal(grads.abs().sum(1) > 0, known.flatten())
    assert torch.equal(index, rows.flatten())


def test_nothing_is_hidden_outside_of_training() -> None:
    rows = torch.randint(0, 48, (2, 9, 3))
    made = tables(0.9).eval()
    plain = tables(0.0)
    plain.load_state_dict(made.state_dict())
    assert torch.equal(made(rows, torch.float32), plain.eval()(rows, torch.float32))
