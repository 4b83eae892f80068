"""Every parameter is moved once, by the formula of its kind; state goes out and comes back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from flyweight.train.loop import backward  # noqa: E402
from flyweight.train.optimizer import RowAdagrad, coalesce  # noqa: E402
from flyweight.train.session import Session  # noqa: E402
from flyweight.train.state import TrainState  # noqa: E402

Fresh, Sessions = Callable[..., TrainState], Callable[..., Session]


def step(state: TrainState, session: Session, number: int = 0, clip: float | None = 1.0) -> float:
    backward(state, session, session.batches.batch(number))
    norm = state.optimizer.gather()
    state.optimizer.apply(0.01, clip, norm)
    return norm


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("model", ["tokens", "patches"])
def test_every_parameter_is_in_one_group(fresh: Fresh, model: str, kind: str) -> None:
    state = fresh(model, kind, share={"feedforward": "all"})
    inside = [p for o in state.optimizer.optimizers for g in o.param_groups for p in g["params"]]
    names = {id(p): name for name, p in state.model.named_parameters()}
    found = sorted(names[id(p)] for p in inside)
    sparse = ["embedding.ngrams.table"] if model == "patches" else []
    assert sorted(found + sparse) == sorted(names.values())
    groups = {
        names[id(p)]: (type(o).__name__, g["rate"], g["weight_decay"])
        for o in state.optimizer.optimizers
        for g in o.param_groups
        for p in g["params"]
    }
    first = "Muon" if kind == "muon" else "AdamW"
    assert groups["blocks.0.attention.qkv.weight"] == (first, 1.0, 0.01)
    assert groups["shared_feedforward.down.weight"] == (first, 1.0, 0.01)
    assert groups["embedding.weight"] == ("AdamW", 0.75, 0.01)
    assert groups["head.weight"] == ("AdamW", 0.75, 0.01)
    assert groups["norm.weight"] == ("AdamW", 0.75, 0.0), "gains are not decayed"
    assert groups["blocks.1.attention_norm.bias"] == ("AdamW", 0.75, 0.0)
    if model == "patches":
        assert groups["embedding.matches"] == ("AdamW", 0.75, 0.01)
        assert groups["embedding.ngrams.project.weight"] == (first, 1.0, 0.01)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("model", ["tokens", "patches"])
def test_every_parameter_moves(fresh: Fresh, session: Sessions, model: str, kind: str) -> None:
    state = fresh(model, kind)
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    step(state, session())
    moved = {
        n for n, tensor in state.model.state_dict().items() if not torch.equal(tensor, before[n])
    }
    assert moved == before.keys()
    assert all(p.grad is None for p in state.model.parameters())


def test_the_norm_is_over_all_gradients_and_clips_them(fresh: Fresh, session: Sessions) -> None:
    state, made = fresh("patches"), session()
    backward(state, made, made.batches.batch(0))
    dense = [p.grad for p in state.model.parameters() if p.grad is not None]
    norm = state.optimizer.gather()
    touched = state.optimizer.touched
    assert touched is not None
    squares = sum(float(g.double().square().sum()) for g in [*dense, touched[1]])
    assert norm == pytest.approx(squares**0.5, rel=1e-5)
    # AdamW and Muon hardly feel a gradient's size; the tables' sums tell what they were given.
    state.optimizer.apply(0.01, norm / 10, norm)
    sums = state.optimizer.tensors()["embedding.ngrams.table/sums"][touched[0]]
    wanted = (touched[1] / 10).square().mean(dim=1, keepdim=True)
    torch.testing.assert_close(sums, wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_moments_are_those_of_the_clipped_gradients(
    fresh: Fresh, session: Sessions, kind: str
) -> None:
    """After one step from nothing a first moment is (1 - beta) times what the step was given."""
    state, made = fresh("tokens", kind), session()
    backward(state, made, made.batches.batch(0))
    given_ = {n: p.grad.clone() for n, p in state.model.named_parameters() if p.grad is not None}
    norm = state.optimizer.gather()
    state.optimizer.apply(0.01, norm / 5, norm)
    moments = state.optimizer.tensors()
    for name, gradient in given_.items():
        adam = moments.get(f"{name}/exp_avg")
        moment = moments[f"{name}/momentum_buffer"] if adam is None else adam
        share = 0.05 if adam is None else 0.1
        torch.testing.assert_close(moment, share * gradient / 5, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("model", ["tokens", "patches"])
def test_state_goes_out_and_comes_back(
    fresh: Fresh, session: Sessions, model: str, kind: str
) -> None:
    made = session()
    state, other = fresh(model, kind), fresh(model, kind, seed=9)
    for number in range(3):
        step(state, made, number)
    out = {name: tensor.clone() for name, tensor in state.optimizer.tensors().items()}
    other.model.load_state_dict(state.model.state_dict())
    other.optimizer.load({name: tensor.clone() for name, tensor in out.items()})
    assert other.optimizer.tensors().keys() == out.keys()
    owners = {name.rpartition("/")[0] for name in out}
    assert owners == {name for name, _ in state.model.named_parameters()}
    # From here on the two are one.
    for number in range(3, 5):
        step(state, made, number)
        step(other, made, number)
    for mine, theirs in (
        (state.model.state_dict(), other.model.state_dict()),
        (state.optimizer.tensors(), other.optimizer.tensors()),
    ):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_state_of_an_unknown_parameter_is_refused(fresh: Fresh) -> None:
    with pytest.raises(AssertionError, match="nobody"):
        fresh("tokens").optimizer.load({"nobody/momentum_buffer": torch.zeros(1)})


def test_row_adagrad_is_dense_adagrad_on_the_rows_it_touches() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 6, generator=generator)
    start, eps, rate = table.clone(), 1e-8, 0.3
    rows = RowAdagrad(table, eps)
    dense, sums = start.double().clone(), torch.zeros(50, 1, dtype=torch.float64)
    touched = set()
    for number in range(8):
        index = torch.randperm(40, generator=generator)[:7]
        grads = torch.randn(7, 6, generator=generator) * 10 ** (number - 4)
        rows.step(index, grads, rate)
        touched |= set(index.tolist())
        full = torch.zeros(50, 6, dtype=torch.float64)
        full[index] = grads.double()
        sums += full.square().mean(dim=1, keepdim=True)
        dense -= rate * full / (sums.sqrt() + eps)
    torch.testing.assert_close(table.double(), dense, rtol=1e-5, atol=1e-6)
    others = [row for row in range(50) if row not in touched]
    assert len(others) >= 10
    assert torch.equal(table[others], start[others])
    assert rows.sums[others].abs().sum() == 0


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
def test_coalescing_sums_the_gradients_of_equal_rows(
    index: list[int], width: int, seed: int
) -> None:
    # Whole numbers, so that sums are exact in any order.
    grads = np.random.default_rng(seed).integers(-99, 99, (len(index), width)).astype(np.float32)
    rows, total = coalesce(torch.tensor(index), torch.from_numpy(grads))
    wanted = np.zeros((10, width), np.float32)
    np.add.at(wanted, np.array(index), grads)
    assert rows.tolist() == sorted(set(index))
    assert np.array_equal(total.numpy(), wanted[rows.numpy()])


def test_a_tables_gradient_is_the_dense_one(fresh: Fresh, session: Sessions) -> None:
    """The rows' gradients, made outside autograd's parameters, against autograd's own."""
    state, made = fresh("patches", init={"kind": "normal", "std": 0.3}), session()
    batch = made.batches.batch(0)
    backward(state, made, batch)
    state.optimizer.gather()
    assert state.optimizer.touched is not None
    rows, grads = state.optimizer.touched
    ngrams = state.model.embedding.ngrams
    assert ngrams is not None
    ngrams.table.requires_grad_(True)
    state.model.eval()  # so that the table is looked up as any embedding
    state.model.zero_grad()
    backward(state, made, batch)
    dense = ngrams.table.grad
    assert dense is not None
    torch.testing.assert_close(grads, dense[rows], rtol=1e-4, atol=1e-7)
    elsewhere = torch.ones(len(dense), dtype=torch.bool)
    elsewhere[rows] = False
    assert dense[elsewhere].abs().sum() == 0


def test_forgetting_drops_all_gradients(fresh: Fresh, session: Sessions) -> None:
    state, made = fresh("patches"), session()
    backward(state, made, made.batches.batch(0))
    state.optimizer.forget()
    assert all(p.grad is None for p in state.model.parameters())
    assert state.model.embedding.ngrams is not None
    assert state.model.embedding.ngrams.take() is None
