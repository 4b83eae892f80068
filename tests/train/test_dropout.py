"""Dropout: schedules by their formulas, masks by their shares, and no chance but the seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from flyweight.files.run import RunFolder  # noqa: E402
from flyweight.model.layers import dropped  # noqa: E402
from flyweight.spec.errors import ConfigurationError  # noqa: E402
from flyweight.spec.run import Train  # noqa: E402
from flyweight.train.compiled import compile_parts  # noqa: E402
from flyweight.train.loop import run_training, take_step  # noqa: E402
from flyweight.train.schedule import Plan  # noqa: E402
from flyweight.train.session import Session  # noqa: E402
from flyweight.train.state import TrainState  # noqa: E402

Fresh, Sessions = Callable[..., TrainState], Callable[..., Session]


def shares(dropout: Any, steps: int) -> list[float]:
    made = Plan(Train.parse({"dropout": dropout}), steps)
    return [made.at(step).dropout for step in range(steps)]


def test_schedules() -> None:
    assert shares(0.1, 5) == [0.1] * 5
    # p0 + (t - t0)(p1 - p0)/(t1 - t0), clamped.
    line = {"kind": "linear", "start": 0.3, "rate": 0.1, "begin": 0.25, "until": 0.75}
    assert shares(line, 8) == pytest.approx([0.3, 0.3, 0.3, 0.25, 0.2, 0.15, 0.1, 0.1])
    waves = {"kind": "triangle", "start": 0.1, "rate": 0.5, "cycles": 2}
    assert shares(waves, 8) == pytest.approx([0.1, 0.3, 0.5, 0.3, 0.1, 0.3, 0.5, 0.3])
    assert Plan(Train(), 4).at(3).dropout == 0


@pytest.mark.parametrize(
    ("dropout", "said"),
    [
        ({"rate": 0.1, "start": 0.2}, "start belongs to"),
        ({"kind": "triangle", "rate": 0.1, "begin": 0.2}, "begin and until belong to"),
        ({"kind": "linear", "rate": 0.1, "begin": 0.5, "until": 0.5}, "must be before"),
        ({"kind": "linear", "rate": 0.1, "cycles": 2}, "cycles belongs to"),
        (1.0, "less than 1"),
    ],
)
def test_schedules_that_cannot_be_are_refused(dropout: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Train.parse({"dropout": dropout})


def test_the_mask() -> None:
    torch.manual_seed(0)
    out = dropped(torch.ones(200, 500), torch.tensor(0.3))
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert float((out == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert dropped(torch.ones(3, dtype=torch.bfloat16), torch.tensor(0.5)).dtype == torch.bfloat16


def test_training_drops_and_what_is_trained_does_not(fresh: Fresh, session: Sessions) -> None:
    model = fresh("tokens", init={"kind": "normal", "std": 0.3}).model
    tokens = torch.arange(32)[None]
    plain = model.train()(tokens)
    model.drop(0.5)
    assert not torch.equal(model(tokens), plain)
    assert not torch.equal(model(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), plain)
    model.train().drop(0.0)
    assert torch.equal(model(tokens), plain)


@pytest.mark.parametrize("model", ["tokens", "patches"])
def test_a_resumed_run_drops_the_same(
    fresh: Fresh, session: Sessions, tmp_path: Path, model: str
) -> None:
    dropout = {"kind": "linear", "start": 0.4, "rate": 0.0}
    used = session(dropout=dropout, checkpoint={"every": 2, "keep": 0})
    run, whole = RunFolder(tmp_path), fresh(model)
    run.checkpoints.mkdir()
    run_training(whole, used, run)
    lines = run.read_ledger()
    assert [line["dropout"] for line in lines] == pytest.approx(
        [0.4 * (6 - n) / 6 for n in range(6)]
    )
    again = fresh(model, seed=4)
    again.load(run.checkpoint_path(2))
    for line in lines[2:]:
        assert take_step(again, used)["loss"] == line["loss"]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


@pytest.mark.slow
def test_compiled_blocks_drop_what_eager_ones_do(fresh: Fresh, session: Sessions) -> None:
    dropout = {"kind": "linear", "start": 0.5, "rate": 0.1}
    losses = []
    for compiled in (False, True):
        state, used = fresh("tokens"), session(dropout=dropout)
        assert not compiled or compile_parts(state, used)
        losses.append([take_step(state, used)["loss"] for _ in range(4)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
